"""Compare: two continuations side by side, with two seeds, two temperatures or two checkpoints."""

import pytest
from browsing import META, expect, open_page, plain, set_fields, until_written
from serving import CARD, serving

from mlx_gpt.serve import Served


@pytest.fixture
def compare(page):
    set_fields(page, max_tokens=30, temperature=1)
    page.click("#tab-compare")
    page.fill("#text", "Hello")
    return page


def both(page):
    page.click("#write")
    until_written(page)
    return [page.locator(f"#text-{side}").text_content() for side in "ab"]


def test_two_seeds(compare, served):
    compare.fill("#seed-a", "1")
    compare.fill("#seed-b", "2")
    texts = both(compare)
    for text, seed in zip(texts, (1, 2), strict=True):
        asked = {"prompt": "Hello", "max_tokens": 30, "temperature": 1, "top_p": 0.9, "seed": seed}
        assert text == plain(served.post(json=asked).json()["choices"][0]["text"])
        assert f"seed {seed}" in compare.locator(f"#about-{'ab'[seed - 1]}").text_content()
    assert texts[0] != texts[1] and "differ from character" in compare.locator("#sameness").text_content()


def test_two_temperatures(compare, served):
    compare.fill("#seed", "3")
    compare.fill("#temperature-a", "0")
    compare.fill("#temperature-b", "1.3")
    for text, temperature in zip(both(compare), (0, 1.3), strict=True):
        asked = {"prompt": "Hello", "max_tokens": 30, "temperature": temperature, "top_p": 0.9, "seed": 3}
        assert text == plain(served.post(json=asked).json()["choices"][0]["text"])


def test_equal_texts_are_called_equal(compare):
    compare.fill("#seed", "3")
    first, second = both(compare)
    assert first == second and compare.locator("#sameness").text_content() == "The two texts are the same."
    assert compare.locator(".differs").count() == 0


DIFFERENCE = """async ([a, b]) => {
  const { difference } = await import("./diff.js");
  return difference(a, b).map((list, i) => list.map(([start, end]) => [a, b][i].slice(start, end)));
}"""


@pytest.mark.parametrize(
    "a, b, only",
    [
        ("one two three", "one 2 three", (["two"], ["2"])),
        ("same", "same", ([], [])),
        ("", "new words", ([], ["new", " ", "words"])),
        ("a b c d", "a c d e", (["b", " "], [" ", "e"])),
        ("x " * 3000, "y " * 3000, (6000, 6000)),
    ],
)
def test_the_difference_is_the_words_that_the_other_text_lacks(page, a, b, only):
    found = page.evaluate(DIFFERENCE, [a, b])
    if isinstance(only[0], int):  # too long for the table: everything after the common beginning
        assert [len(parts) for parts in found] == list(only)
    else:
        assert found == list(only)


def test_a_continuation_becomes_a_part_of_the_text(compare):
    _, second = both(compare)
    seed = compare.locator("#about-b").text_content().rpartition(" ")[2]
    compare.click("#keep-b")
    assert compare.input_value("#text") == "Hello" + second and compare.locator("#mirror .token").count() == 30
    assert compare.locator("#text-a").text_content() == ""
    compare.click("#tab-complete")
    assert compare.locator("#used").text_content() == seed
    compare.focus("#text")
    compare.keyboard.press("Control+z")
    assert compare.input_value("#text") == "Hello"


def test_both_outlive_a_reload(compare):
    texts = both(compare)
    compare.reload()
    expect(compare.locator("#text-a")).to_have_text(texts[0])
    assert compare.locator("#text-b").text_content() == texts[1]


def test_two_checkpoints(browser, ascii_run, unicode_run):
    CARD["meta"].update(META)
    models = [
        Served(network=run.model, tokenizer=run.tokenizer, card=CARD | {"id": id}, examples=lambda id=id: [f"b {id}"])
        for run, id in ((ascii_run, "run/best"), (unicode_run, "run/checkpoint"))
    ]
    with serving(models) as served:
        page = open_page(browser.new_context(viewport={"width": 1280, "height": 900}), served.url)
        set_fields(page, max_tokens=20, temperature=1, seed=5)
        expect(page.get_by_role("button", name="b run/best")).to_be_visible()
        page.click("#tab-compare")
        page.fill("#text", "a b")
        for text, id in zip(both(page), ("run/best", "run/checkpoint"), strict=True):
            asked = {"model": id, "prompt": "a b", "max_tokens": 20, "temperature": 1, "top_p": 0.9, "seed": 5}
            assert text == plain(served.post(json=asked).json()["choices"][0]["text"])
        page.click("#tab-complete")
        page.click("#clear")
        page.select_option("#model-choice", "run/checkpoint")
        page.get_by_role("button", name="b run/checkpoint").click()
        assert page.input_value("#text") == "b run/checkpoint"
        page.context.close()
