"""Findings of Rust programs that need no compiler, from their tokens."""

from collections.abc import Iterator

from mlx_gpt.code.rust_tokens import CLOSING, OPENING, Token

TYPES = {"struct", "enum", "trait", "union", "type"}
STUBS = {"todo", "unimplemented"}  # macros that compile as a body of every type, and panic
READERS = {"include_str", "include_bytes"}  # macros that read files
READERS_AS_MACRO = {"include", "env", "option_env"}  # macros that read, whose names are common
LONGEST = 500  # tokens of a signature, a pattern or an expression that are searched for its end


def measured(tokens: list[Token]) -> dict:
    """Returns the findings that need no compiler, by name, except those of lines."""
    return {
        "functions": sum(1 for _ in _functions(tokens)),
        "complexity": 1 + sum(_branches(tokens, i) for i in range(len(tokens))),
        "nesting": _nesting(tokens),
        "coverage": _coverage(tokens),
        "defined": frozenset(_defined(tokens)),
    }


def reading_macro(tokens: list[Token]) -> str | None:
    """Returns what in the program would make the compiler read files or the environment, or None."""
    for i, token in enumerate(tokens):
        after = _text(tokens, i + 1)
        if token.kind == "word" and token.text in READERS:
            return f"{token.text}!"
        if token.kind == "word" and token.text in READERS_AS_MACRO and after in ("!", "as"):
            return f"{token.text}!"
        if token.text == "path" and after == "=" and _text(tokens, i - 1) in ("[", ",", "("):
            return "#[path]"
    return None


def _text(tokens: list[Token], i: int) -> str:
    """Returns the text of the token at an index, "" outside of the program."""
    return tokens[i].text if 0 <= i < len(tokens) else ""


def _find(tokens: list[Token], i: int, marks: str) -> int:
    """Returns the index of the first of some marks at or after index i, outside of brackets that are opened after i.

    Returns the index of the closing bracket that ends the surroundings, or the number of tokens, if there is none.
    """
    wanted = marks.split()
    for _ in range(LONGEST):
        if i >= len(tokens):
            break
        token = tokens[i]
        if token.kind == "mark" and (token.text in wanted or token.text in CLOSING):
            return i
        i = 1 + (token.close if token.kind == "mark" and token.text in OPENING else i)
    return len(tokens)


def _functions(tokens: list[Token]) -> Iterator[int]:
    """Yields the index of the name of each function and method."""
    for i, token in enumerate(tokens[1:], 1):
        if token.kind == "word" and tokens[i - 1].text == "fn" and tokens[i - 1].kind == "word":
            yield i


def _branches(tokens: list[Token], i: int) -> int:
    """Returns 1 if the token at an index begins a branch or a loop: if, while, for, loop, an arm of a match."""
    token = tokens[i]
    if token.text == "=>":
        return 1
    if token.text == "for":  # not of `impl Trait for Type` and `for<'a>`
        end = min(_find(tokens, i + 1, "{ ;"), i + LONGEST)
        return any(t.text == "in" and t.kind == "word" for t in tokens[i + 1 : end])
    return token.kind == "word" and token.text in ("if", "while", "loop")


def _nesting(tokens: list[Token]) -> int:
    """Returns the depth of the deepest pair of braces, except those of `use a::{b}`."""
    depth = deepest = 0
    stack = []
    for i, token in enumerate(tokens):
        if token.text == "{":
            stack.append(_text(tokens, i - 1) != "::")
            depth += stack[-1]
            deepest = max(deepest, depth)
        elif token.text == "}" and stack:
            depth -= stack.pop()
    return deepest


def _defined(tokens: list[Token]) -> Iterator[str]:
    """Yields the names of the types, and of the functions whose body does something."""
    for i, token in enumerate(tokens[1:], 1):
        if token.kind == "word" and tokens[i - 1].text in TYPES and tokens[i - 1].kind == "word":
            yield token.text
    for i in _functions(tokens):
        begin = _find(tokens, i, "{ ;")
        if _text(tokens, begin) == "{":
            body = [token.text for token in tokens[begin + 1 : min(tokens[begin].close, begin + 6)]]
            if set(body) - {"(", ")", ";", "return"} and not (body[0] in STUBS and body[1:2] == ["!"]):
                yield tokens[i].text


# -- matches ----------------------------------------------------------------------------------------------------------


def _coverage(tokens: list[Token]) -> float | None:
    """Returns the share of the variants of the program's enums that its matches name, see Findings."""
    enums = dict(_enums(tokens))
    handled = total = 0
    for i, token in enumerate(tokens):
        if token.text == "match" and token.kind == "word":
            begin = _find(tokens, i + 1, "{ ;")
            if _text(tokens, begin) != "{":
                continue
            named = set(_named(tokens, begin, enums))
            for enum in {enum for enum, _ in named}:
                handled += sum(name == enum for name, _ in named)
                total += len(enums[enum])
    return handled / total if total else None


def _enums(tokens: list[Token]) -> Iterator[tuple[str, set[str]]]:
    """Yields the name and the variants of each enum."""
    for i, token in enumerate(tokens[:-1]):
        if token.text != "enum" or token.kind != "word":
            continue
        begin = _find(tokens, i + 1, "{ ;")
        if _text(tokens, begin) != "{":
            continue
        at, variants = begin + 1, set()
        while at < tokens[begin].close:
            while _text(tokens, at) == "#" and _text(tokens, at + 1) == "[":  # an attribute
                at = tokens[at + 1].close + 1
            if at < tokens[begin].close and tokens[at].kind == "word":
                variants.add(tokens[at].text)
            at = _find(tokens, at, ",") + 1
        yield tokens[i + 1].text, variants


def _named(tokens: list[Token], begin: int, enums: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yields (enum, variant) for the alternatives of a match whose arms have no further condition.

    Args:
        tokens: The program.
        begin: The index of the opening brace of the arms.
        enums: The variants of each enum.
    """
    at, end = begin + 1, tokens[begin].close
    while at < end:
        arrow = _find(tokens, at, "=>")
        if arrow >= end:
            return
        pattern = range(at, arrow)
        if not any(tokens[i].text == "if" and tokens[i].kind == "word" for i in pattern):
            yield from _variants(tokens, pattern, enums)
        at = arrow + 1
        if _text(tokens, at) == "{":
            at = tokens[at].close + 1
            at += _text(tokens, at) == ","
        else:
            at = _find(tokens, at, ",") + 1


def _variants(tokens: list[Token], pattern: range, enums: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Yields (enum, variant) for each alternative of a pattern that is a variant.

    `Self::V` and `V` are variants of the only enum that has a variant of this name.
    """
    at = pattern.start
    while at < pattern.stop:
        end = min(_find(tokens, at, "|"), pattern.stop)
        words = []
        for token in tokens[at:end]:
            if token.text in ("&", "ref", "mut", "::"):
                continue
            if token.kind != "word":
                break
            words.append(token.text)
        owners = [enum for enum, variants in enums.items() if words and words[-1] in variants]
        if len(words) > 1 and words[-2] in owners:
            yield words[-2], words[-1]
        elif len(owners) == 1 and (len(words) == 1 or words[-2] == "Self"):
            yield owners[0], words[-1]
        at = end + 1
