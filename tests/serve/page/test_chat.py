"""The chat: turns, the system prompt, refused messages, and drafts apart from Complete."""

import json

import pytest
from browsing import expect, plain, send, set_fields, until_written, write


@pytest.fixture
def chat(page):
    set_fields(page, max_tokens=12, temperature=0)
    page.click("#tab-chat")
    return page


def given(page):
    return page.locator(".given").all_text_contents()


def test_a_chat_by_keyboard_alone(page, served):
    set_fields(page, max_tokens=12, temperature=0)
    page.locator("#tab-complete").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-chat")).to_be_focused()
    page.locator("#message").focus()
    for text in ("Hello", "Go on"):
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        until_written(page)
    assert page.locator(".turn h2").all_text_contents() == ["You", "Model"] * 2
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"messages": messages, "max_tokens": 12, "temperature": 0}
    answer = served.post("/v1/chat/completions", asked).json()["choices"][0]["message"]["content"]
    assert page.locator(".written").first.text_content() == plain(answer)


def test_the_system_prompt_is_the_first_message(chat):
    bodies = []
    chat.on("request", lambda request: bodies.append(request.post_data) if request.method == "POST" else None)
    chat.fill("#system", "Be brief")
    send(chat, "Hello")
    roles = [(message["role"], message["content"]) for message in json.loads(bodies[0])["messages"]]
    assert roles == [("system", "Be brief"), ("user", "Hello")]


def test_a_refused_message_is_no_part_of_the_chat(chat):
    for text in ("Hello", "caf\u00e9", "Go on"):
        send(chat, text)
        if text == "caf\u00e9":
            expect(chat.locator("#error")).to_contain_text("U+00E9")
            expect(chat.locator("#message")).to_have_value(text)
    assert given(chat) == ["Hello", "Go on"]


def test_drafts_and_texts_of_the_modes_are_apart_and_outlive_a_reload(page):
    write(page, "A text", max_tokens=8)
    until_written(page)
    text = page.input_value("#text")
    page.click("#tab-chat")
    send(page, "Hello")
    page.fill("#message", "A draft")
    page.click("#tab-complete")
    assert page.input_value("#text") == text
    page.click("#tab-chat")
    answer = page.locator(".written").text_content()
    page.reload()
    expect(page.locator("#tab-chat")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#message")).to_have_value("A draft")
    assert given(page) == ["Hello"] and page.locator(".written").text_content() == answer
    page.click("#tab-complete")
    assert page.input_value("#text") == text


def test_again_replaces_the_last_answer(chat):
    chat.fill("#temperature", "1")
    send(chat, "Hello")
    first = chat.locator(".written").text_content()
    chat.click("#again")
    until_written(chat)
    assert chat.locator(".written").count() == 1 and chat.locator(".written").text_content() != first


def test_a_message_can_be_edited_and_the_chat_goes_on_from_there(chat):
    for text in ("One", "Two", "Three"):
        send(chat, text)
    chat.get_by_role("button", name="Edit").nth(1).click()
    assert chat.input_value("#message") == "Two" and given(chat) == ["One"]
    send(chat, "Another")
    assert given(chat) == ["One", "Another"]


def test_the_newest_answer_and_the_field_stay_in_view(chat):
    for number in range(8):
        send(chat, f"Message {number}")
        expect(chat.locator(".written").last).to_be_in_viewport()
        expect(chat.locator("#message")).to_be_in_viewport(ratio=1)


def test_stop_and_an_answer_that_is_cut_stays(chat, served):
    chat.fill("#max_tokens", "4000")
    chat.fill("#temperature", "1")
    chat.fill("#message", "Hello")
    chat.click("#write")
    chat.locator("#turns .token").nth(5).wait_for(state="attached")
    chat.keyboard.press("Escape")
    until_written(chat)
    served.until_idle(3)
    assert chat.locator(".written").text_content()
