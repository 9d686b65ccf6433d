"""The page in a real browser: written, stopped, pointed at, wrong, loaded again. Needs playwright and Chromium."""

import json
import shutil

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

from covering import covering  # noqa: E402
from serving import CARD, serving  # noqa: E402

from mlx_gpt.generation.slots import Slots  # noqa: E402
from mlx_gpt.web.guard import Access  # noqa: E402

META = {
    "n_params": 4818432, "val_loss": 1.4697, "iteration": 3000, "corpus": "shakespeare", "n_vocab": 102, "n_layer": 2,
    "n_head": 3, "n_embd": 24, "chat_template": "{role}:\n{content}\n\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def served(ascii_run):
    CARD["meta"].update(META)
    with serving(ascii_run) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def page(context, served):
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if "Security Policy" in message.text else None)
    page.set_default_timeout(15_000)
    page.goto(served.url)
    playwright.expect(page.locator("#model")).to_have_text("tiny")
    yield page
    assert not faults


def written(page):
    return "".join(page.locator(".token").all_text_contents())


def write(page, prompt="Hello", **settings):
    for name, value in ({"seed": 7, "max_tokens": 40, "temperature": 0} | settings).items():
        page.fill(f"#{name}", str(value))
    page.fill("#prompt", prompt)
    page.click("#write")


def until_written(page):
    playwright.expect(page.locator("#stop")).to_be_disabled()
    playwright.expect(page.locator("#again")).to_be_enabled()


def test_what_is_written_is_the_completion(page, served):
    write(page)
    until_written(page)
    asked = {"prompt": "Hello", "max_tokens": 40, "seed": 7, "temperature": 0, "top_p": 0.9}
    text = served.post(json=asked).json()["choices"][0]["text"]
    assert written(page) == text and page.locator(".given").text_content() == "Hello"
    assert "tokens/s" in page.locator("#status").text_content()


def test_tokens_are_tinted_by_surprisal(page, served):
    write(page, temperature=1)
    until_written(page)
    heat = [float(t.evaluate("e => e.style.getPropertyValue('--surprise')")) for t in page.locator(".token").all()]
    bits = [t.evaluate("e => -e.told.logprob / Math.LN2") for t in page.locator(".token").all()]
    np.testing.assert_allclose(heat, np.minimum(np.array(bits) / 8, 1) * 0.55, atol=1e-3)
    assert len(set(heat)) > 3
    page.uncheck("#tint")
    assert page.locator("#turns.tinted").count() == 0


def test_pointing_and_arrow_keys_show_the_alternatives(page):
    write(page, temperature=1)
    until_written(page)
    page.locator(".token").nth(3).hover()
    tip = page.locator("#tip")
    playwright.expect(tip).to_be_visible()
    assert "bits of surprisal" in tip.text_content() and 5 <= tip.locator("div").count() <= 6
    assert tip.locator(".drawn").count() == 1
    page.locator(".written").focus()
    page.keyboard.press("ArrowRight")
    playwright.expect(page.locator(".token").nth(4)).to_have_class("token chosen")
    page.keyboard.press("Escape")
    playwright.expect(tip).to_be_hidden()


# The rows of the tip of every token: class, name and share of each alternative.
TIPS = """() => [...document.querySelectorAll(".token")].map((token) => {
  token.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  const cells = (row) => [...row.querySelectorAll("span")].slice(0, 2).map((cell) => cell.textContent);
  return [...document.querySelectorAll("#tip div")].map((row) => [row.className, ...cells(row)]);
})"""


def test_the_alternatives_are_in_descending_order(page):
    """Also those whose names are digits, which a JavaScript object puts first."""
    write(page, temperature=1)
    until_written(page)
    tips = page.evaluate(TIPS)
    assert {name for tip in tips for _, name, _ in tip} & set("0123456789")
    for tip in tips:
        shares = [float(share.removesuffix("%")) for *_, share in tip]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("mode", ["complete", "chat"])
def test_the_tip_names_the_bytes_of_a_token_that_is_a_part_of_a_character(browser, bytes_run, mode):
    with serving(bytes_run) as served:
        page = browser.new_page()
        page.goto(served.url)
        playwright.expect(page.locator("#model")).to_have_text("tiny")
        page.click(f"#tab-{mode}")
        write(page, "\U0001f600", temperature=1, top_p=1)
        until_written(page)
        tips = page.evaluate(TIPS)
        drawn = [[name for kind, name, _ in tip if kind == "drawn"] for tip in tips]
        assert all(len(names) == 1 for names in drawn) and any(names[0].startswith("bytes:") for names in drawn)
        assert not any("\ufffd" in name for tip in tips for _, name, _ in tip)
        page.close()


def test_stop_ends_the_work_and_keeps_the_text(page, served):
    write(page, max_tokens=4000)
    page.locator(".token").nth(10).wait_for()
    page.click("#stop")
    until_written(page)
    served.until_idle(3)
    kept = written(page)
    assert 10 <= len(kept) < 4000 and page.locator("#error").is_hidden()
    page.fill("#max_tokens", "5")
    page.click("#continue")
    until_written(page)
    assert written(page).startswith(kept) and len(written(page)) == len(kept) + 5
    assert page.locator(".given").text_content() == "Hello"


def test_again_writes_anew_after_the_same_prompt(page):
    write(page, temperature=1, seed="")
    until_written(page)
    first = written(page)
    page.click("#again")
    until_written(page)
    assert written(page) != first and page.locator(".given").text_content() == "Hello"


def test_a_chat_by_keyboard_alone(page, served):
    page.fill("#max_tokens", "12")
    page.fill("#temperature", "0")
    page.locator("#tab-chat").focus()
    page.keyboard.press("Enter")
    page.locator("#prompt").focus()
    for text in ("Hello", "Go on"):
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        until_written(page)
    assert page.locator("h2").all_text_contents() == ["You", "Model"] * 2
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"messages": messages, "max_tokens": 12, "temperature": 0}
    answer = served.post("/v1/chat/completions", asked).json()["choices"][0]["message"]["content"]
    assert page.locator(".written").first.text_content() == answer


@pytest.mark.parametrize("prompt, words", [("caf\u00e9", "U+00E9"), ("a" * 100_001, "100,001")])
def test_an_error_is_shown_and_goes_away(page, prompt, words):
    write(page, prompt)
    playwright.expect(page.locator("#error")).to_contain_text(words)
    write(page)
    until_written(page)
    assert page.locator("#error").is_hidden()


def test_a_refused_message_is_no_part_of_the_chat(page):
    page.fill("#max_tokens", "8")
    page.click("#tab-chat")
    for text in ("Hello", "caf\u00e9", "Go on"):
        page.fill("#prompt", text)
        page.keyboard.press("Enter")
        until_written(page)
        if text == "caf\u00e9":
            playwright.expect(page.locator("#error")).to_contain_text("U+00E9")
            playwright.expect(page.locator("#prompt")).to_have_value(text)
    assert page.locator(".given").all_text_contents() == ["Hello", "Go on"]
    page.click("#tab-complete")
    assert page.locator(".turn").count() == 0
    page.click("#tab-chat")
    assert page.locator(".given").all_text_contents() == ["Hello", "Go on"]


def test_a_fault_in_the_middle_is_shown_and_the_text_kept(page, monkeypatch):
    real, left = Slots.step, [8]

    def fail_later(*arguments):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("device lost")
        return real(*arguments)

    monkeypatch.setattr(Slots, "step", fail_later)
    write(page)
    playwright.expect(page.locator("#error")).to_contain_text("RuntimeError")
    assert written(page)


def test_prompt_and_settings_outlive_a_reload(page):
    write(page, "Some words", max_tokens=17)
    until_written(page)
    page.reload()
    playwright.expect(page.locator("#prompt")).to_have_value("Some words")
    playwright.expect(page.locator("#max_tokens")).to_have_value("17")
    page.click("#write")
    until_written(page)
    assert len(page.locator(".token").all()) <= 17


def test_a_text_of_markup_stays_text(page):
    write(page, "<img src=x onerror=alert(1)>")
    until_written(page)
    assert page.locator("#turns img").count() == 0


def test_copy_as_curl_is_what_was_asked(context, page, served):
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)
    write(page, "It's")
    until_written(page)
    page.click("#curl")
    playwright.expect(page.locator("#status")).to_have_text("copied")
    import shlex

    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert words[:3] == ["curl", "-N", served.url + "/v1/completions"]
    assert json.loads(words[-1])["prompt"] == "It's"


def test_the_models_card(page):
    page.click("summary")
    card = page.locator("#card dl").text_content()
    assert all(words in card for words in ("4,818,432", "1.4697", "shakespeare", "2 layers"))


def test_the_key_is_asked_for(browser, ascii_run):
    with serving(ascii_run, access=Access(key="sesame")) as served:
        page = browser.new_page()
        page.goto(served.url)
        playwright.expect(page.locator("#error")).to_contain_text("requires an API key")
        page.fill("#key", "sesame")
        page.locator("#key").blur()
        playwright.expect(page.locator("#model")).to_have_text("tiny")
        write(page)
        until_written(page)
        assert written(page)


@pytest.mark.parametrize("scheme, width", covering(["light", "dark"], [360, 1200], together=1))
def test_it_fits_and_can_be_read(browser, served, scheme, width):
    """No sideways scrolling; contrast of at least 4.5 (WCAG 2 AA), on the fullest tint too."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto(served.url)
    write(page, max_tokens=200, temperature=1)
    until_written(page)
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".token").first.evaluate("e => e.style.setProperty('--surprise', 0.55)")
    seen = {}
    for name in ("#hint", "summary", ".token", ".given", "#status", "#write", "#clear", "legend", "#error"):
        page.locator(name).first.evaluate("e => e.hidden = false")
        seen[name] = page.locator(name).first.evaluate(COLOURS)
    for name, (ink, back) in seen.items():
        assert contrast(ink, back) >= 4.5, (name, ink, back)
    page.close()


COLOURS = """e => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const layers = [];
  for (let node = e; node; node = node.parentElement) layers.unshift(parse(getComputedStyle(node).backgroundColor));
  let back = [255, 255, 255];
  for (const [r, g, b, a] of layers) back = [r, g, b].map((c, i) => c * a + back[i] * (1 - a));
  return [parse(getComputedStyle(e).color).slice(0, 3), back];
}"""


def contrast(ink, back):
    def luminance(colour):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(ink), luminance(back)))
    return (high + 0.05) / (low + 0.05)


def test_every_character_is_shown_once_in_its_place(browser, unicode_run):
    with serving(unicode_run) as served:
        page = browser.new_page()
        page.goto(served.url)
        playwright.expect(page.locator("#model")).to_have_text("tiny")
        write(page, "a\U0001f600", temperature=4, top_p=1)
        until_written(page)
        asked = {"prompt": "a\U0001f600", "max_tokens": 40, "seed": 7, "temperature": 4, "top_p": 1, "logprobs": 0}
        [choice] = served.post(json=asked).json()["choices"]
        assert {"\U0001f600", "\u0301", "\u05d0"} <= set(choice["text"])
        assert page.locator(".token").all_text_contents() == choice["logprobs"]["tokens"]
        assert written(page) == choice["text"]
        page.close()
