"""Splits Rust programs into tokens, without a compiler. Text that is no program is split too."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Block comments may be nested, and raw strings end with as many # as they begin with: _end() finds their ends.
PATTERN = re.compile(
    r"""(?P<comment>//[^\n]*)
    |(?P<block>/\*)
    |(?P<raw>(?:b|c|br|cr)?r(?P<hashes>\#*)")
    |(?P<string>[bc]?"(?:\\.|[^\\"])*(?:"|\\?\Z))
    |(?P<char>b?'(?:\\(?:u\{[^}\n]*\}|x[0-9a-fA-F]{2}|.)|[^\\'\n])')
    |(?P<lifetime>'[A-Za-z_]\w*)
    |(?P<word>(?:r\#)?[^\W\d]\w*)
    |(?P<number>\d(?:\w|\.(?=\d))*)
    |(?P<mark>=>|->|::|\.\.=?|&&|\|\||[^\s])""",
    re.VERBOSE | re.DOTALL,
)
OPENING, CLOSING = "([{", ")]}"


@dataclass(slots=True)
class Token:
    """A token.

    Attributes:
        kind: "word" (keywords and names), "lifetime", "number", "string", "char", "mark".
        text: Its text. A raw name has no r#.
        start, end: Its place in the program, in characters.
        close: For an opening bracket, the index of the token that closes it, or the number of tokens if none does.
    """

    kind: str
    text: str
    start: int
    end: int
    close: int = 0


def tokens_of(text: str) -> list[Token]:
    """Returns the tokens of a program. Spaces and comments are left out."""
    tokens = [token for token in _scanned(text) if token.kind != "comment"]
    stack = []
    for i, token in enumerate(tokens):
        if token.kind == "mark" and token.text in OPENING:
            token.close = len(tokens)
            stack.append(token)
        elif token.kind == "mark" and token.text in CLOSING and stack:
            stack.pop().close = i
    return tokens


def without_comments(text: str) -> str:
    """Returns the program with two spaces for each comment, so that the tokens beside it stay what they are.

    The line breaks inside comments are kept.
    """
    pieces, at = [], 0
    for token in _scanned(text):
        if token.kind == "comment":
            pieces += [text[at : token.start], "  " + "\n" * token.text.count("\n")]
            at = token.end
    return "".join([*pieces, text[at:]])


def _scanned(text: str) -> Iterator[Token]:
    """Yields the tokens of a program, with its comments."""
    at = 0
    while found := PATTERN.search(text, at):
        at, kind = found.end(), found.lastgroup
        if found["raw"]:
            kind, at = "string", _after(text, '"' + found["hashes"], at)
        elif kind == "block":
            kind, at = "comment", _after_block(text, at)
        piece = text[found.start() : at]
        yield Token(kind, piece.removeprefix("r#") if kind == "word" else piece, found.start(), at)


def _after(text: str, ending: str, at: int) -> int:
    """Returns the place after the next occurrence of a text, or the end of the program."""
    place = text.find(ending, at)
    return len(text) if place < 0 else place + len(ending)


def _after_block(text: str, at: int) -> int:
    """Returns the end of the block comment whose content begins at a place."""
    depth = 1
    while depth:
        found = re.compile(r"/\*|\*/").search(text, at)
        if not found:
            return len(text)
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return at


def is_balanced(tokens: list[Token]) -> bool:
    """Whether every bracket has its partner."""
    stack = []
    for token in tokens:
        if token.kind == "mark" and token.text in OPENING:
            stack.append(CLOSING[OPENING.index(token.text)])
        elif token.kind == "mark" and token.text in CLOSING and (not stack or stack.pop() != token.text):
            return False
    return not stack
