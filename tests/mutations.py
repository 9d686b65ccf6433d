"""Random changes of files, requests and JSON values."""

import copy
import json
import math
import random
import re
import struct
from collections.abc import Callable
from typing import Any

# Lengths, offsets and counts in files are numbers of one of these layouts.
LAYOUTS = [("<H", 16), ("<I", 32), ("<Q", 64), (">I", 32)]
# Bytes that mean something to a reader of JSON, TOML, HTTP or UTF-8.
FRAGMENTS = [b"9", b"-", b"e9", b'"', b"{", b"}", b"]", b"null", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"true"]
FRAGMENTS += [b"[" * 100, b'{"a":' * 100, b"a." * 100, b"\n", b"\r\n", b"\x00", b"\xff", b"\xc0\x80", b"\\ud800", b"\\"]
FRAGMENTS += ["\u202e".encode(), "\u0301".encode(), "\U0010ffff".encode(), b"\xed\xa0\x80", b"=", b":", b" " * 100]
# Values for a place of a JSON object. The last one is 70 nested lists.
VALUES = [None, True, -1, 0, 1, 2, 7, 1.5, -0.0, 1e308, math.nan, math.inf, 1 << 31, 1 << 40, 1 << 63, 1 << 70]
VALUES += ["", "x", "a\nb", "\u202e", "\x00", "\ud800", "\U0001d11e", "9" * 50, "x" * 5000, "../../etc/passwd", "inf"]
VALUES += [-(1 << 63), [], {}, [0] * 50, [[]], {"": 0}, {"a": {"a": {}}}, json.loads("[" * 70 + "]" * 70)]


def mutated(good: bytes, draw: random.Random) -> bytes:
    """One to four changes of bytes: flipped bits, cuts, repeats, splices, overwritten numbers, inserted fragments."""
    data = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        if not data:
            return b""
        place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 400))
        match draw.randrange(7):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                del data[place : place + draw.randint(1, 50)]
            case 2:
                data[place:place] = data[place : place + draw.randint(1, 50)]
            case 3:
                layout, bits = draw.choice(LAYOUTS)
                number = draw.choice([0, 1, 2, 8, 9, 255, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1])
                data[place : place + bits // 8] = struct.pack(layout, number)
            case 4:
                data[place : place + draw.randint(0, 1)] = draw.choice(FRAGMENTS)
            case 5:
                data = data[: draw.randrange(len(data)) + 1]
            case 6:
                other = draw.randrange(len(data))
                data[place : place + 20] = data[other : other + 20]
    return bytes(data)


def mutated_value(good: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one to three changed places: replaced, removed, repeated or renamed."""
    value = json.loads(json.dumps(good))
    for _ in range(draw.randint(1, 3)):
        inside = value
        while isinstance(inside, (dict, list)) and inside:
            key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            if isinstance(inside[key], (dict, list)) and inside[key] and draw.random() < 0.8:
                inside = inside[key]
                continue
            _change(inside, key, draw)
            break
    return value


def _change(inside: dict | list, key, draw: random.Random) -> None:
    match draw.randrange(6):
        case 0:
            del inside[key]
        case 1 if isinstance(inside, dict):
            inside[draw.choice(["", "x", "\u202e", str(key) + " "])] = inside.pop(key)
        case 2 if isinstance(inside, list):
            inside.insert(key, inside[key])
        case _:
            inside[key] = copy.deepcopy(draw.choice(VALUES))


def mutated_json(good: bytes, draw: random.Random) -> bytes:
    """JSON of which a value or some bytes were changed."""
    if draw.random() < 0.3:
        return mutated(good, draw)
    text = json.dumps(mutated_value(json.loads(good), draw))
    return (_repeated_name(text, draw) if draw.random() < 0.1 else text).encode()


def _repeated_name(text: str, draw: random.Random) -> str:
    """JSON in which an object has its first name twice."""
    places = list(re.finditer(r'\{("[^"\\]*": [^][{},]+)', text))
    if not places:
        return text
    place = draw.choice(places)
    return text[: place.start()] + "{" + place[1] + ", " + text[place.start() + 1 :]


def mutated_lines(good: bytes, draw: random.Random) -> bytes:
    """JSON Lines in which one to three lines were changed, removed or repeated."""
    lines = good.splitlines(keepends=True)
    for place in draw.sample(range(len(lines)), draw.randint(1, 3)):
        lines[place] = draw.choice([mutated_json(lines[place], draw) + b"\n", b"", lines[place] * 2])
    return b"".join(lines)


Mutate = Callable[[bytes, random.Random], bytes]
