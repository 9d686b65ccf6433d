"""The page for everybody: axe's rules, contrast, narrow windows, forced colours, the keyboard, and sizes of targets."""

from importlib.resources import files

import pytest
from browsing import contrast, expect, open_page, send, set_fields, tokens, until_written, write
from covering import covering

MODES = ("complete", "compare", "chat")


def fill(page, mode):
    """Shows a mode of the page in use: with a text, its tip, an error and the card of the model."""
    set_fields(page, temperature=1, max_tokens=30)
    page.click(f"#tab-{mode}")
    if mode == "chat":
        send(page, "Hello")
    else:
        page.fill("#text", "Hello")
        page.click("#write")
        until_written(page)
    page.click("#card summary")
    page.locator("#error").evaluate("e => { e.hidden = false; e.textContent = 'An error'; }")


@pytest.mark.parametrize("mode, scheme", covering(MODES, ["light", "dark"], together=1))
def test_axe_finds_no_violation(browser, served, mode, scheme):
    page = open_page(browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900}), served.url)
    axe = files(pytest.importorskip("axe_playwright_python")) / "axe.min.js"
    fill(page, mode)
    page.evaluate(axe.read_text())
    found = page.evaluate("axe.run().then(({ violations }) => violations)")
    assert not [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]
    page.context.close()


@pytest.mark.parametrize("mode, width", covering(MODES, [320, 360, 768, 1440], together=1))
def test_it_fits(browser, served, mode, width):
    """No sideways scrolling, and nothing is wider than the window."""
    page = open_page(browser.new_context(viewport={"width": width, "height": 740}), served.url)
    fill(page, mode)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate("""() => [...document.querySelectorAll("main *, aside *, header *")]
      .filter((e) => e.checkVisibility() && !e.closest(".spoken") && !e.closest("canvas"))
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
      .map((e) => e.outerHTML.slice(0, 80))""")
    assert not wide
    expect(page.locator("#write")).to_be_in_viewport(ratio=1)
    page.context.close()


def test_a_low_window_scrolls_as_a_whole(browser, served):
    """Such as a phone on its side, or any window at 400%."""
    page = open_page(browser.new_context(viewport={"width": 320, "height": 256}), served.url)
    page.locator("#settings").evaluate("e => e.open = false")
    write(page, max_tokens=400)
    until_written(page)
    page.locator("#settings").evaluate("e => e.open = false")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.scrollHeight > 2 * innerHeight")
    expect(page.locator("#write")).to_be_in_viewport()
    page.context.close()


COLOURS = """e => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
  const layers = [];
  for (let node = e; node; node = node.parentElement) layers.unshift(parse(getComputedStyle(node).backgroundColor));
  let back = [255, 255, 255];
  for (const [r, g, b, a] of layers) back = [r, g, b].map((c, i) => c * a + back[i] * (1 - a));
  const style = getComputedStyle(e), outside = getComputedStyle(document.body).backgroundColor;
  const [ink, edge, around] = [style.color, style.borderTopColor, outside].map((text) => parse(text).slice(0, 3));
  return { ink, back, edge, outside: around };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_text_and_borders(browser, served, scheme):
    """At least 4.5 for text, on the fullest tint too, and 3 for the borders of fields and buttons (WCAG 2 AA)."""
    page = open_page(browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900}), served.url)
    write(page, temperature=1)
    until_written(page)
    tint = tokens(page).first
    tint.evaluate("e => e.style.setProperty('--surprise', 0.55)")
    ink = page.locator("#text").evaluate(COLOURS)["ink"]  # the field's text lies on the token of the mirror
    assert contrast(ink, tint.evaluate(COLOURS)["back"]) >= 4.5
    for control in page.locator("button:enabled, input:not([type=checkbox]), textarea, select, .sheet").all():
        if not control.is_visible() or control.get_attribute("id") == "text":
            continue
        seen = control.evaluate(COLOURS)
        name = control.evaluate("e => e.outerHTML.slice(0, 80)")
        assert contrast(seen["ink"], seen["back"]) >= 4.5, name
        assert contrast(seen["edge"], seen["outside"]) >= 3, name
    page.context.close()


def test_targets_are_24_pixels_high_and_wide(browser, served):
    """WCAG 2.2, 2.5.8, also the small buttons and the rows of a tip."""
    page = open_page(browser.new_context(viewport={"width": 360, "height": 740}), served.url)
    fill(page, "chat")
    for control in page.locator("button, input, select, textarea, summary, [role=tab]").all():
        if control.is_visible():
            box = control.bounding_box()
            assert min(box["width"], box["height"]) >= 24, control.evaluate("e => e.outerHTML.slice(0, 80)")
    page.context.close()


def test_arrow_keys_move_between_tabs(page):
    assert [page.locator(f"#tab-{mode}").get_attribute("tabindex") for mode in MODES] == ["0", "-1", "-1"]
    page.locator("#tab-complete").focus()
    for key, mode in (("ArrowRight", "compare"), ("End", "chat"), ("ArrowRight", "complete"), ("ArrowLeft", "chat")):
        page.keyboard.press(key)
        expect(page.locator(f"#tab-{mode}")).to_be_focused()
        expect(page.locator(f"#tab-{mode}")).to_have_attribute("aria-selected", "true")
        expect(page.locator("#panel")).to_have_attribute("aria-labelledby", f"tab-{mode}")


def test_the_status_never_moves_the_page(browser, served):
    """One line of a fixed height, however long it is."""
    page = open_page(browser.new_context(viewport={"width": 360, "height": 740}), served.url)
    write(page)
    until_written(page)
    places = []
    for text in ("", "short", "long " * 100):
        page.locator("#status").evaluate("(e, text) => e.textContent = text", text)
        places.append(page.locator("#write").bounding_box())
    assert places[0] == places[1] == places[2]
    page.context.close()


def test_forced_colours_show_text_and_controls(browser, served):
    """The text and what the model is writing are in the system's colour; the field does not hide the mirror."""
    page = open_page(browser.new_context(forced_colors="active", viewport={"width": 1280, "height": 900}), served.url)
    write(page, temperature=1)
    until_written(page)
    field = page.locator("#text").evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
    canvas = page.evaluate("""() => {
      const e = document.body.appendChild(document.createElement("p"));
      e.style.color = "CanvasText";
      return getComputedStyle(e).color;
    }""")
    assert field == [canvas, "rgba(0, 0, 0, 0)"]
    page.locator(".sheet").evaluate("e => e.classList.add('writing')")
    assert page.locator("#mirror").evaluate("e => getComputedStyle(e).color") == canvas
    chosen, other = (
        page.locator(f"#tab-{mode}").evaluate("e => getComputedStyle(e).backgroundColor") for mode in MODES[:2]
    )
    assert chosen != other
    page.context.close()


def test_shortcuts_are_shown_and_work(page):
    assert page.locator("#write kbd").text_content().startswith("Ctrl")
    assert page.locator("#write").get_attribute("aria-keyshortcuts") == "Control+Enter"
    set_fields(page, temperature=1, max_tokens=10)
    page.fill("#text", "Hello")
    page.keyboard.press("Control+Enter")
    until_written(page)
    first = page.input_value("#text")
    page.keyboard.press("Control+Shift+Enter")
    until_written(page)
    assert tokens(page).count() == 10 and page.input_value("#text") != first
