"""The characters that stand for bytes in GPT-2's vocabularies: BYTES maps each to its byte."""


def _byte_characters() -> dict[str, int]:
    """Maps each character that stands for a byte in GPT-2's vocabularies to that byte, 256 items.

    A byte that is printable in Latin-1 is represented by its Latin-1 character. The other bytes are represented by
    U+0100, U+0101, ... in order: byte 0x00 by U+0100, and the space, 0x20, by U+0120.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = _byte_characters()
