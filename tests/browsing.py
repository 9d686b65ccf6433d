"""Functions that use the page of `mlxgpt serve` in a real browser. Needs playwright and Chromium."""

import shutil

import numpy as np
import pytest

expect = pytest.importorskip("playwright.sync_api").expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)

META = {
    "n_params": 4818432, "val_loss": 1.4697, "iteration": 3000, "corpus": "shakespeare", "n_vocab": 102, "n_layer": 2,
    "n_head": 3, "n_embd": 24, "chat_template": "{role}:\n{content}\n\n",
}  # fmt: skip


def open_page(context, url, faults=None):
    """Opens the page, and waits until it knows its model. Appends errors of its scripts to the list `faults`."""
    page = context.new_page()
    if faults is not None:
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Security Policy" in said.text else None)
    page.set_default_timeout(15_000)
    page.goto(url)
    expect(page.locator("#card dd").first).to_be_attached()
    return page


def open_settings(page):
    """Opens the settings, which are closed in a narrow window."""
    page.locator("#settings").evaluate("e => e.open = true")


def write(page, text="Hello", **settings):
    """Continues a text. By default the continuation is greedy, with 40 tokens and seed 7."""
    set_fields(page, **{"seed": 7, "max_tokens": 40, "temperature": 0} | settings)
    page.fill("#text", text)
    page.click("#write")


def set_fields(page, **settings):
    open_settings(page)
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))


def until_written(page):
    expect(page.locator("#write-label")).not_to_have_text("Stop")


def send(page, message):
    """Sends a message of a chat, and waits for the answer."""
    page.fill("#message", message)
    page.keyboard.press("Enter")
    until_written(page)


def tokens(page, place="#mirror"):
    return page.locator(f"{place} .token")


def plain(text):
    """A text as a text field holds it, see tokens.js."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def written(page):
    """The text that the model wrote in Complete."""
    return "".join(tokens(page).all_text_contents())


def hover(page, token):
    """Moves the pointer to a token, from another place."""
    token.scroll_into_view_if_needed()
    box = token.evaluate("e => e.getClientRects()[0].toJSON()")
    page.mouse.move(1, 1)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def contrast(ink, back):
    """The contrast of two colours (R, G, B), as WCAG 2 defines it."""

    def luminance(colour):
        parts = [c / 255 for c in colour]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((luminance(ink), luminance(back)))
    return (high + 0.05) / (low + 0.05)
