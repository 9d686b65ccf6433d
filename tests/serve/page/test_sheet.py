"""The sheet: one text that the user and the model write, with undo, and with a mirror in the same places."""

import re

import pytest
from browsing import expect, open_page, plain, tokens, until_written, write, written
from serving import serving

from mlx_gpt.generation.slots import Slots


def test_what_is_written_is_the_completion(page, served):
    write(page)
    until_written(page)
    asked = {"prompt": "Hello", "max_tokens": 40, "seed": 7, "temperature": 0, "top_p": 0.9}
    text = plain(served.post(json=asked).json()["choices"][0]["text"])
    assert written(page) == text and page.input_value("#text") == "Hello" + text
    assert "tokens/s" in page.locator("#status").text_content()


def test_the_text_can_be_edited_anywhere_and_continued_from_there(page, served):
    write(page)
    until_written(page)
    edited = "Now: " + page.input_value("#text")[:20] + "and"
    page.fill("#text", edited)
    page.click("#write")
    until_written(page)
    asked = {"prompt": edited, "max_tokens": 40, "temperature": 0, "top_p": 0.9}
    text = plain(served.post(json=asked).json()["choices"][0]["text"])
    assert page.input_value("#text") == edited + text


def test_an_edit_keeps_the_marks_of_the_tokens_it_does_not_touch(page):
    write(page, temperature=1)
    until_written(page)
    before = tokens(page).all_text_contents()
    page.focus("#text")
    page.evaluate("document.getElementById('text').setSelectionRange(15, 15)")  # after the tenth token
    page.keyboard.type("xyz")
    assert tokens(page).all_text_contents() == before
    page.keyboard.press("Control+a")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Backspace")
    assert tokens(page).all_text_contents() == before[:-1]
    assert page.locator("#mirror").text_content().removesuffix("\u200b") == page.input_value("#text")


def test_undo_brings_back_the_last_text_with_its_marks(page):
    write(page)
    until_written(page)
    first = page.input_value("#text")
    page.click("#write")
    until_written(page)
    second = page.input_value("#text")
    assert second.startswith(first) and tokens(page).count() == 80
    page.focus("#text")
    page.keyboard.press("Control+z")
    assert page.input_value("#text") == first and tokens(page).count() == 40
    page.keyboard.press("Control+z")
    assert page.input_value("#text") == "Hello" and tokens(page).count() == 0
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+Shift+z")
    assert page.input_value("#text") == second and tokens(page).count() == 80


def test_one_undo_brings_back_what_again_replaced(page):
    write(page, temperature=1, seed="")
    until_written(page)
    first = page.input_value("#text")
    page.click("#again")
    until_written(page)
    assert page.input_value("#text") != first and page.input_value("#text").startswith("Hello")
    page.focus("#text")
    page.keyboard.press("Control+z")
    assert page.input_value("#text") == first and tokens(page).count() == 40


def test_stop_ends_the_work_and_keeps_the_text(page, served):
    write(page, max_tokens=4000)
    tokens(page).nth(10).wait_for(state="attached")
    expect(page.locator("#write-label")).to_have_text("Stop")
    page.click("#write")
    until_written(page)
    served.until_idle(3)
    kept = written(page)
    assert 10 <= len(kept) < 4000 and page.locator("#error").is_hidden()
    page.fill("#max_tokens", "5")
    page.click("#write")
    until_written(page)
    assert page.input_value("#text").startswith("Hello" + kept) and tokens(page).count() == len(kept) + 5


def test_stop_stays_in_view_and_the_end_of_the_text_too(page):
    """Unless the reader has scrolled away: the text then grows without moving."""
    write(page, "\n" * 60, max_tokens=4000)
    tokens(page).nth(300).wait_for(state="attached")
    in_view = "e => { const b = e.getBoundingClientRect(); return b.top >= 0 && b.bottom <= innerHeight; }"
    assert page.locator("#write").evaluate(in_view)
    expect(page.locator("#end")).to_be_in_viewport()
    page.locator("#scroll").evaluate("e => e.scrollTop = 0")
    count = tokens(page).count()
    tokens(page).nth(count + 100).wait_for(state="attached")
    assert page.locator("#scroll").evaluate("e => e.scrollTop") == 0 and page.locator("#write").evaluate(in_view)
    page.keyboard.press("Escape")
    until_written(page)
    assert page.locator("#scroll").evaluate("e => e.scrollTop") == 0


def test_the_mirror_has_every_line_where_the_field_has_it(browser, unicode_run):
    """Also lines that end in spaces, wide characters, combining ones, and an empty last line."""
    with serving(unicode_run) as served:
        page = open_page(browser.new_context(viewport={"width": 400, "height": 800}), served.url)
        for text in ("a" * 300, "a b " * 99 + " " * 200, "\n\n", "a\u0301\U0001f600" * 60, "\u05d0\u05e9 ab " * 30):
            page.fill("#text", text)
            for element in ("mirror", "text"):  # without their least height
                page.locator(f"#{element}").evaluate("e => { e.style.minHeight = 0; e.style.alignSelf = 'start'; }")
            page.locator("#text").evaluate("e => e.style.height = 'auto'")
            heights = [page.locator(f"#{name}").evaluate("e => e.scrollHeight") for name in ("text", "mirror")]
            assert heights[0] == heights[1], (text[:9], heights)
        page.context.close()


def test_trailing_spaces_stay_in_the_sheet(page):
    write(page, "a" + " " * 400, max_tokens=1)
    until_written(page)
    right = page.locator(".sheet").evaluate("e => e.getBoundingClientRect().right")
    assert tokens(page).first.evaluate("e => e.getBoundingClientRect().right") <= right
    rows = page.evaluate("""() => {
      const range = document.createRange(), text = document.getElementById("mirror").firstChild;
      range.selectNodeContents(text);
      return [...range.getClientRects()].map((box) => box.right);
    }""")
    assert len(rows) > 1 and max(rows) <= right


def test_every_character_is_shown_once_in_its_place(browser, unicode_run):
    with serving(unicode_run) as served:
        page = open_page(browser.new_context(viewport={"width": 1280, "height": 800}), served.url)
        write(page, "a\U0001f600", temperature=4, top_p=1)
        until_written(page)
        asked = {"prompt": "a\U0001f600", "max_tokens": 40, "seed": 7, "temperature": 4, "top_p": 1, "logprobs": 0}
        [choice] = served.post(json=asked).json()["choices"]
        assert {"\U0001f600", "\u0301", "\u05d0"} <= set(choice["text"])
        assert tokens(page).all_text_contents() == choice["logprobs"]["tokens"]
        assert page.input_value("#text") == "a\U0001f600" + choice["text"]
        page.context.close()


@pytest.mark.parametrize("prompt, words", [("caf\u00e9", "U+00E9"), ("a" * 100_001, "100,001")])
def test_an_error_is_shown_and_goes_away(page, prompt, words):
    write(page, prompt)
    expect(page.locator("#error")).to_contain_text(words)
    assert page.input_value("#text") == prompt
    write(page)
    until_written(page)
    assert page.locator("#error").is_hidden()


def test_a_fault_in_the_middle_is_shown_and_the_text_kept(page, monkeypatch):
    real, left = Slots.step, [8]

    def fail_later(*arguments):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("device lost")
        return real(*arguments)

    monkeypatch.setattr(Slots, "step", fail_later)
    write(page)
    expect(page.locator("#error")).to_contain_text("RuntimeError")
    assert written(page) and page.input_value("#text") == "Hello" + written(page)


def test_a_server_that_dies_in_the_middle_says_what_can_be_done(page):
    """The page stands in for the network here: the connection breaks after the first events of the stream."""
    page.evaluate("""() => {
      const real = window.fetch;
      window.fetch = async (...given) => {
        const answer = await real(...given), reader = answer.body.getReader();
        let left = 2;
        const pull = async (to) =>
          left-- ? to.enqueue((await reader.read()).value) : to.error(new TypeError("network error"));
        return new Response(new ReadableStream({ pull }), { status: 200 });
      };
    }""")
    write(page, max_tokens=200)
    expect(page.locator("#error")).to_contain_text("connection to the server was lost")
    expect(page.locator("#error")).to_contain_text("mlxgpt serve")
    assert written(page) and page.input_value("#text") == "Hello" + written(page)


def test_the_text_its_marks_and_the_mode_outlive_a_reload(page):
    write(page, "Some words", temperature=1)
    until_written(page)
    text, marked = page.input_value("#text"), tokens(page).all_text_contents()
    seed = page.locator("#used").text_content()
    page.reload()
    expect(page.locator("#text")).to_have_value(text)
    assert tokens(page).all_text_contents() == marked
    assert page.locator("#used").text_content() == seed == "7"


def test_a_reload_while_the_model_writes_keeps_what_was_there(page, served):
    write(page, "Some words", max_tokens=4000)
    tokens(page).nth(10).wait_for(state="attached")
    page.reload()
    expect(page.locator("#text")).to_have_value(re.compile(r"Some words[\s\S]{10,}"))
    assert page.input_value("#text") == "Some words" + written(page)
    served.until_idle(3)


INSERT = """async (texts) => {
  const { Sheet } = await import("./sheet.js"), box = document.getElementById("scroll");
  const [mirror, field] = ["div", "textarea"].map((tag) => box.appendChild(document.createElement(tag)));
  const sheet = new Sheet(field, mirror, () => {});
  let edits = 0;
  field.addEventListener("input", () => edits++);
  return texts.map((text) => {
    field.value = "x";
    edits = 0;
    sheet.replace(1, 1, text, [{ text, name: text, logprob: -1, top: [] }]);
    const found = [field.value, mirror.textContent.slice(0, -1), edits, sheet.marks.length];
    document.execCommand("undo");
    return [...found, field.value];
  });
}"""
ODD = [
    "<img src=x onerror=alert(1)>", "&amp;&lt;b>bold</b></textarea><!-- -->", "\n\n lead", "trail \n",
    "\t\u00a0 \x0c\x0b\x01", "\u2028\ufeff\U0001f600e\u0301\u05d0", "\n".join(f"    line {i}" for i in range(300)),
]  # fmt: skip


def test_every_text_is_inserted_as_it_is_in_one_edit(page):
    """Markup stays text, and spaces stay what they are. A text of many lines is one edit too."""
    page.evaluate("document.body.addEventListener('error', () => (document.title = 'markup'), true)")
    for text, (value, shown, edits, num_marks, undone) in zip(ODD, page.evaluate(INSERT, ODD), strict=True):
        assert value == shown == "x" + text and edits == 1 and num_marks == 1 and undone == "x", text[:20]
    assert page.locator("main img").count() == 0 and page.title() == "tiny"


RETURNS = """async (batches) => {
  const { Sheet } = await import("./sheet.js"), box = document.getElementById("scroll");
  const [mirror, field] = ["div", "textarea"].map((tag) => box.appendChild(document.createElement(tag)));
  const sheet = new Sheet(field, mirror, () => {}), texts = batches.flat();
  const made = (text) => ({ text, name: text, logprob: -1, top: [] });
  const seen = () => [field.value, mirror.textContent.slice(0, -1), sheet.tokens.map((token) => token.text).join("")];
  sheet.restore({ text: "x", marks: [] });
  sheet.begin(1);
  batches.forEach((batch) => sheet.write(batch.map(made)));
  const found = [mirror.textContent.slice(0, -1)], early = sheet.state;
  sheet.finish(texts.join(""), texts.map(made));
  found.push(...seen());
  for (const state of [early, JSON.parse(JSON.stringify(sheet.state))]) {
    sheet.restore(state);
    found.push(...seen());
  }
  return found;
}"""


@pytest.mark.parametrize(
    "batches", [[["a", "\r", "\n", "b\r", "\nc", "\r", "d"]], [["\n", "\r"], ["\n"], ["\n\r"], ["\r\n"]]]
)
def test_a_carriage_return_and_a_newline_in_two_tokens_are_one_newline(page, batches):
    """... while the model writes, at the end, and after a reload. No token loses its place."""
    written = "".join(sum(batches, []))
    while_writing, *later = page.evaluate(RETURNS, batches)
    assert while_writing == "x" + plain(written)
    assert later == 3 * [while_writing, while_writing, written]


EDITS = """async (edits) => {
  const { Sheet } = await import("./sheet.js"), box = document.getElementById("scroll");
  const [mirror, field] = ["div", "textarea"].map((tag) => box.appendChild(document.createElement(tag)));
  const sheet = new Sheet(field, mirror, () => {});
  sheet.replace(0, 0, "a\\r\\nb", ["a", "\\r", "\\n", "b"].map((text) => ({ text, name: text, logprob: -1, top: [] })));
  return edits.map(([start, end, text]) => {
    field.setRangeText(text, start, end, "end");
    field.dispatchEvent(new Event("input"));
    return [field.value, mirror.textContent.slice(0, -1), sheet.tokens.map((token) => token.text).join("")];
  });
}"""


def test_an_edit_after_a_carriage_return_and_a_newline_keeps_each_token_once(page):
    edits = [[2, 2, "X"], [3, 3, "Y"], [1, 2, ""]]
    assert page.evaluate(EDITS, edits) == [
        ["a\nXb", "a\nXb", "a\r\nb"],
        ["a\nXYb", "a\nXYb", "a\r\nb"],
        ["aXYb", "aXYb", "ab"],
    ]


def test_a_text_of_markup_stays_text(page):
    write(page, "<img src=x onerror=alert(1)>")
    until_written(page)
    assert page.locator("#panel img").count() == 0
    assert page.input_value("#text").startswith("<img src=x onerror=alert(1)>")
