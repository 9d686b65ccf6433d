"""Counts lines of a program, in any language."""

import re

MAX_CHARACTERS = 100_000  # of a program: a longer text is not parsed


def too_long(text: str) -> str:
    """Returns the reason why a text is not parsed, "" if there is none."""
    return "" if len(text) <= MAX_CHARACTERS else f"{len(text)} characters; at most {MAX_CHARACTERS} are parsed"


def code_lines(text: str, comment: str) -> list[str]:
    """Returns the lines that are neither blank nor a comment, without the spaces around them.

    Args:
        text: The program.
        comment: The beginning of a comment.
    """
    stripped = map(str.strip, text.splitlines())
    return [line for line in stripped if line and not line.startswith(comment)]


def repetition(lines: list[str]) -> float:
    """Returns the share of the lines that occur before, from 0 to 1. Lines without a word, as "}", do not count."""
    worded = [line for line in lines if re.search(r"\w", line)]
    return (len(worded) - len(set(worded))) / len(worded) if worded else 0.0
