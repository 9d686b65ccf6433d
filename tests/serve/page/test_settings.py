"""The settings: what is sent, refused, kept and reset; the seed that was used; the request as a program."""

import json
import shlex
import subprocess
import sys

import pytest
from browsing import expect, plain, send, set_fields, tokens, until_written, write
from serving import serving

from mlx_gpt.web.guard import Access

BIG = 2**53 + 1  # a JavaScript number has no such value


@pytest.fixture
def requests(page):
    """The bodies of the requests for texts, as they are sent."""
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data) if request.method == "POST" else None)
    return bodies


@pytest.fixture
def clipboard(context, page, served):
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=served.url)

    def read(button):
        page.click(button)
        expect(page.locator("#status")).to_contain_text("copied")
        return page.evaluate("navigator.clipboard.readText()")

    return read


def test_every_setting_is_sent(page, requests):
    values = {"top_p": 0.5, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": -0.2}
    write(page, temperature=0.7, presence_penalty=0.3, stop="\\n\\n\n;", **values)
    until_written(page)
    sent = json.loads(requests[0])
    assert sent.items() >= (values | {"temperature": 0.7, "presence_penalty": 0.3, "seed": 7}).items()
    assert sent["stop"] == ["\n\n", ";"]


def test_what_changes_nothing_is_not_sent(page, requests):
    write(page)
    until_written(page)
    assert set(json.loads(requests[0])) == {
        "model", "prompt", "temperature", "top_p", "max_tokens", "seed", "stream", "logprobs"
    }  # fmt: skip


def test_a_value_between_the_steps_is_allowed(page, requests):
    write(page, temperature=0.83, top_p=0.913)
    until_written(page)
    assert json.loads(requests[0])["temperature"] == 0.83 and json.loads(requests[0])["top_p"] == 0.913
    assert page.locator("#error").is_hidden()


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("temperature", "-1", "Temperature: give a number from 0 to 100"),
        ("top_k", "1.5", "Top-k: give a whole number"),
        ("seed", "seven", "Seed: give a whole number"),
        ("seed", str(2**63), "Seed: give a whole number from -9223372036854775808 to 9223372036854775807"),
    ],
)
def test_a_wrong_value_is_named(page, requests, name, value, words):
    write(page, **{name: value})
    expect(page.locator("#error")).to_contain_text(words)
    expect(page.locator(f"#{name}")).to_be_focused()
    assert page.locator(f"#{name}").get_attribute("aria-invalid") == "true" and not requests


@pytest.mark.parametrize("seed", [BIG, 2**63 - 2, -(2**63)])
def test_a_seed_stays_exact(page, requests, clipboard, seed):
    write(page, seed=seed, temperature=1)
    until_written(page)
    assert json.loads(requests[0])["seed"] == seed
    assert page.locator("#used").text_content() == str(seed)
    assert json.loads(shlex.split(clipboard("#curl"))[-1])["seed"] == seed
    assert f"seed={seed}," in clipboard("#python")


def test_the_seed_that_the_server_drew_is_shown_and_makes_the_same_text(page, served, clipboard):
    write(page, seed="", temperature=1)
    until_written(page)
    text, seed = page.input_value("#text"), page.locator("#used").text_content()
    assert seed in page.locator("#status").text_content()
    body = json.loads(shlex.split(clipboard("#curl"))[-1])
    assert body["seed"] == int(seed)
    assert "Hello" + plain(served.post(json=body).json()["choices"][0]["text"]) == text
    page.click("#use-seed")
    page.click("#again")
    until_written(page)
    assert page.input_value("#text") == text and page.input_value("#seed") == seed


def test_after_an_edit_the_next_request_is_copied(page, clipboard):
    write(page, seed="", temperature=1)
    until_written(page)
    page.fill("#text", "It's new")
    body = json.loads(shlex.split(clipboard("#curl"))[-1])
    assert body["prompt"] == "It's new" and "seed" not in body
    assert page.locator("#used").text_content() == "none yet"


@pytest.mark.parametrize("mode", ["complete", "chat"])
def test_the_copied_program_writes_the_same_text(page, clipboard, mode):
    set_fields(page, temperature=1, top_k=50, stop='"', repetition_penalty=1.05, max_tokens=25)
    if mode == "chat":
        set_fields(page, seed=BIG)
        page.click("#tab-chat")
        page.fill("#system", 'It\'s \\ "odd"\nand long')
        send(page, "Hello")
        text = "".join(tokens(page, "#turns").all_text_contents())
    else:
        write(page, 'a "quoted"\n\\ text', seed=BIG, temperature=1, max_tokens=25)
        until_written(page)
        text = "".join(tokens(page).all_text_contents())
    program = clipboard("#python")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert plain(done.stdout) == text + "\n", done.stderr


def test_settings_outlive_a_reload_and_can_be_reset(page):
    set_fields(page, max_tokens=17, temperature=0.83, stop="END", seed=BIG)
    page.uncheck("#tint")
    page.reload()
    expect(page.locator("#max_tokens")).to_have_value("17")
    assert page.input_value("#seed") == str(BIG) and page.input_value("#stop") == "END"
    assert not page.is_checked("#tint")
    page.click("#reset")
    names = ("max_tokens", "temperature", "stop", "seed")
    assert [page.input_value(f"#{name}") for name in names] == ["200", "0.8", "", ""]
    page.reload()
    expect(page.locator("#max_tokens")).to_have_value("200")


def test_storage_that_is_full_or_refused_stops_nothing(page):
    page.evaluate(
        "() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
    )
    write(page)
    until_written(page)
    assert tokens(page).count() == 40 and page.locator("#error").is_hidden()


def test_the_text_is_copied(page, clipboard):
    write(page)
    until_written(page)
    assert clipboard("#copy") == page.input_value("#text")


def test_the_models_card(page):
    page.click("#card summary")
    card = page.locator("#card dl").text_content()
    assert all(words in card for words in ("4,818,432", "1.4697", "shakespeare", "2 layers"))


def test_the_key_is_asked_for(browser, ascii_run):
    with serving(ascii_run, access=Access(key="sesame")) as served:
        page = browser.new_page()
        page.goto(served.url)
        expect(page.locator("#error")).to_contain_text("requires an API key")
        for key, words in (("wrong", "API key is wrong"), ("sesame", "")):
            page.fill("#key", key)
            page.locator("#key").blur()
            expect(page.locator("#error")).to_contain_text(words)
        expect(page.locator("#model")).to_have_text("tiny")
        write(page)
        until_written(page)
        assert tokens(page).count() == 40
        page.close()
