"""Laws that all languages keep."""

import pytest

from mlx_gpt.code.languages import LANGUAGES, language_of
from mlx_gpt.errors import UserError

PROGRAMS = {
    "python": "def f(x):\n    return x + 1\n",
    "rust": "pub fn f(x: u8) -> u8 {\n    x + 1\n}\n",
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_program_is_found_to_be_one(name):
    language = language_of(name)
    assert language.name == name and language.suffixes[0].startswith(".")
    comment = f"{language.comment} a comment\n"
    for text in (PROGRAMS[name], comment + PROGRAMS[name] + comment):
        found = language.check(text)
        assert found.parses and not found.error and found.warnings == 0
        assert found.compiles is (None if language.missing() else True)
        assert (found.functions, found.complexity, found.nesting, found.defined) == (1, 1, 1, {"f"})
    assert found.lines == sum(any(c.isalnum() or c == "}" for c in line) for line in PROGRAMS[name].splitlines())


@pytest.mark.parametrize("name", LANGUAGES)
def test_an_empty_program_defines_nothing(name):
    """Text without a definition compiles, but cannot pass as an answer."""
    for text in ("", "\n", LANGUAGES[name].comment):
        found = LANGUAGES[name].check(text)
        assert found.parses and not found.defined and found.lines == 0


@pytest.mark.parametrize("name", LANGUAGES)
def test_checking_several_programs_equals_checking_each(name):
    texts = [PROGRAMS[name], "", "(", PROGRAMS[name][:-4]]
    assert LANGUAGES[name].check_all(texts) == [LANGUAGES[name].check(text) for text in texts]


def test_an_unknown_language_is_an_error():
    with pytest.raises(UserError, match="unknown language pyton; did you mean python?"):
        language_of("pyton")
