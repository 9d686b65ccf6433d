"""Reading a text: the tint of its tokens, their tips, the strip, and what screen readers speak."""

import numpy as np
import pytest
from browsing import expect, hover, open_page, send, set_fields, tokens, until_written, write
from serving import serving

# The rows of the tip of every token: class, name and share of each alternative.
TIPS = """async (place) => {
  const { showTip } = await import("./tip.js");
  return [...document.querySelectorAll(`${place} .token`)].map((token) => {
    showTip(token);
    const cells = (row) => [...row.querySelectorAll("span")].slice(0, 2).map((cell) => cell.textContent);
    const rows = [...document.querySelectorAll("#tip .choice")];
    return rows.map((row) => [row.classList.contains("drawn"), ...cells(row)]);
  });
}"""


def test_tokens_are_tinted_by_surprisal(page):
    write(page, temperature=1)
    until_written(page)
    heat = [float(t.evaluate("e => e.style.getPropertyValue('--surprise')")) for t in tokens(page).all()]
    bits = [t.evaluate("e => -e.told.logprob / Math.LN2") for t in tokens(page).all()]
    np.testing.assert_allclose(heat, np.minimum(np.array(bits) / 8, 1) * 0.55, atol=1e-3)
    assert len(set(heat)) > 3
    expect(page.locator("#legend")).to_be_visible()
    page.uncheck("#tint")
    assert page.locator("#mirror.tinted").count() == 0 and page.locator("#legend").is_hidden()


def test_pointing_at_a_token_shows_its_tip(page):
    write(page, temperature=1)
    until_written(page)
    hover(page, tokens(page).nth(3))
    tip = page.locator("#tip")
    expect(tip).to_be_visible()
    assert "bits of surprisal" in tip.text_content() and 5 <= tip.locator(".choice").count() <= 6
    assert tip.locator(".drawn").count() == 1
    assert tokens(page).nth(3).get_attribute("aria-describedby") == "tip"
    page.mouse.move(1, 1)
    expect(tip).to_be_hidden()


def test_no_tip_comes_up_under_a_pointer_that_rests(page):
    """The text is written under it. The browser sends events of the pointer then, without a movement."""
    write(page)
    until_written(page)
    box = tokens(page).nth(9).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.focus("#text")
    page.keyboard.press("Control+z")
    page.mouse.move(x, y)
    page.keyboard.press("Control+Enter")
    until_written(page)
    assert tokens(page).nth(9).bounding_box() == box
    page.mouse.move(x, y)  # where it is
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.locator("#tip").is_hidden()
    page.mouse.move(x, y + 1)
    expect(page.locator("#tip")).to_be_visible()


def test_a_token_of_the_tip_replaces_the_token_and_what_follows(page):
    write(page, temperature=1)
    until_written(page)
    text, box = page.input_value("#text"), tokens(page).nth(9)
    hover(page, box)
    page.mouse.down()
    page.mouse.up()
    other = page.locator("#tip button:not(.drawn)").first
    name = other.locator("span").first.text_content()
    other.click()
    until_written(page)
    begin = len("Hello") + 9
    chosen = page.input_value("#text")[begin]
    assert page.input_value("#text")[:begin] == text[:begin] and chosen != text[begin]
    assert name in (chosen, "\u23ce", "\u2423", "\u21e5") and tokens(page).count() == 9 + 40


def test_alternatives_by_keyboard(page):
    write(page, temperature=1)
    until_written(page)
    page.focus("#text")
    page.evaluate("document.getElementById('text').setSelectionRange(9, 9)")
    page.keyboard.press("Alt+ArrowDown")
    tip = page.locator("#tip")
    expect(tip).to_have_attribute("role", "dialog")
    expect(tokens(page).nth(4)).to_have_class("token chosen")
    assert tip.locator("button").evaluate_all("all => all.includes(document.activeElement)")
    assert "bits of surprisal" in tip.get_attribute("aria-label")
    first = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("ArrowDown" if page.locator("#tip .drawn + button").count() else "ArrowUp")
    assert page.evaluate("document.activeElement.textContent") != first
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    expect(page.locator("#text")).to_be_focused()


def test_the_tokens_of_an_answer_by_arrow_keys(page):
    set_fields(page, max_tokens=12, temperature=0)
    page.click("#tab-chat")
    send(page, "Hello")
    page.locator(".written").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    chosen = tokens(page, "#turns").nth(2)
    expect(chosen).to_have_class("token chosen")
    assert chosen.get_attribute("aria-describedby") == "tip"
    expect(page.locator("#spoken")).to_contain_text("bits of surprisal")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()


def test_the_alternatives_are_in_descending_order(page):
    """Also those whose names are digits, which a JavaScript object puts first."""
    write(page, temperature=1)
    until_written(page)
    tips = page.evaluate(TIPS, "#mirror")
    assert {name for tip in tips for _, name, _ in tip} & set("0123456789")
    for tip in tips:
        shares = [float(share.removesuffix("%")) for *_, share in tip]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("mode", ["complete", "chat"])
def test_the_tip_names_the_bytes_of_a_token_that_is_a_part_of_a_character(browser, bytes_run, mode):
    with serving(bytes_run) as served:
        page = open_page(browser.new_context(viewport={"width": 1280, "height": 900}), served.url)
        if mode == "chat":
            set_fields(page, temperature=1, top_p=1, seed=7, max_tokens=40)
            page.click("#tab-chat")
            send(page, "\U0001f600")
        else:
            write(page, "\U0001f600", temperature=1, top_p=1)
            until_written(page)
        tips = page.evaluate(TIPS, {"complete": "#mirror", "chat": "#turns"}[mode])
        drawn = [[name for is_drawn, name, _ in tip if is_drawn] for tip in tips]
        assert all(len(names) == 1 for names in drawn) and any(names[0].startswith("bytes:") for names in drawn)
        assert not any("\ufffd" in name for tip in tips for _, name, _ in tip)
        page.context.close()


def test_the_strip_shows_the_surprisal_of_the_whole_text(page):
    write(page, temperature=1, max_tokens=50)
    until_written(page)
    strip = page.locator("#strip")
    label = strip.get_attribute("aria-label")
    bits = [t.evaluate("e => -e.told.logprob / Math.LN2") for t in tokens(page).all()]
    assert label.startswith(f"Surprisal of the 50 tokens: {np.mean(bits):.2f} bits per token, at most {max(bits):.2f}")
    heights = strip.evaluate("""canvas => {
      const { width, height } = canvas, data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
      const tall = (x) => [...Array(height).keys()].filter((y) => data[(y * width + x) * 4 + 3] > 0).length;
      return [...Array(50).keys()].map((i) => tall(Math.floor(((i + 0.5) * width) / 50)) / height);
    }""")
    np.testing.assert_allclose(heights, np.minimum(np.array(bits) / 8, 1), atol=0.06)
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] * 30.5 / 50, "y": 5})
    expect(tokens(page).nth(30)).to_have_class("token chosen")


def test_screen_readers_hear_sentences(page, served):
    """The live region changes at the ends of sentences, and says at the end how much was written."""
    page.evaluate("""() => {
      window.heard = [];
      new MutationObserver((changes) => {
        for (const change of changes) for (const node of change.addedNodes) window.heard.push(node.textContent);
      }).observe(document.getElementById("spoken"), { childList: true });
    }""")
    write(page, temperature=1, max_tokens=300)
    until_written(page)
    heard = page.evaluate("window.heard")
    assert heard[-1] == "Wrote 300 tokens." and len(heard) < 60
    said, text = "".join("".join(heard[:-1]).split()), "".join(page.input_value("#text")[5:].split())
    assert said == text
    assert page.locator("#status").get_attribute("aria-live") is None
