"""Changes the bytes of binary files at random, and requires that a reader survives them."""

import random
import resource
import struct
import tracemalloc

from mlx_gpt.errors import UserError


def mutated(good: bytes, draw: random.Random) -> bytes:
    """A few changes of a file: flipped bits, bytes cut or repeated, numbers that are too large, the end cut."""
    data = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data))
        match draw.randrange(5):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                del data[place : place + draw.randint(1, 40)]
            case 2:
                data[place:place] = data[place : place + draw.randint(1, 40)]
            case 3:
                layout, bits = draw.choice([("<I", 32), ("<Q", 64)])
                value = draw.choice([0, 1, 2, 8, 9, 255, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits) - 1])
                data[place : place + bits // 8] = struct.pack(layout, value)
            case 4:
                data = data[: place + 1] if draw.random() < 0.2 else data
        if not data:
            return b""
    return bytes(data)


def require_one_line(good: bytes, read, path, count: int) -> None:
    """Each mutated file is read, or refused in one line, in no more memory than twice the file and 64 MiB."""
    draw = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        for _ in range(count):
            data = mutated(good, draw)
            path.write_bytes(data)
            tracemalloc.reset_peak()
            try:
                read(path)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 800, str(error)
            assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + (64 << 20)
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB
