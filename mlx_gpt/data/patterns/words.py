"""Words of which the names and docstrings of generated programs are made, and the draws that choose them."""

import hashlib
from collections.abc import Iterator, Sequence

NOUNS = (
    "account anchor apple badge barrel basket battery beacon bottle bridge bucket button cable camera candle canvas "
    "carpet castle cellar channel circle client cloud cluster coin column copper corner crate cursor curtain cycle "
    "desert device diamond dragon engine envelope factory falcon feather field filter folder forest fossil fountain "
    "garden gateway glacier goblet guitar hammer harbor helmet island jacket journey kernel kettle ladder lantern "
    "ledger lemon letter library magnet market meadow meteor mirror module monitor mountain needle network notebook "
    "orchard packet painter palace parcel pebble pencil pepper pillow pirate planet pocket pollen portal printer "
    "pulse puzzle quarry rabbit radar ribbon river robot rocket sailor sample saddle scanner season sensor shelter "
    "signal silver socket spider stable station storm studio summit tablet target teapot temple ticket timber token "
    "tower tractor tunnel turbine valley vector vessel violin voyage wagon walnut weaver window winter wizard"
).split()
ADJECTIVES = (
    "active ancient basic bright broad calm clean common cosmic daily distant double early eager equal exact fancy "
    "final former frozen gentle global golden hidden inner joint large light little local lucky major mellow minor "
    "modern narrow nearby neutral normal novel outer plain polar prime proper public quick quiet rapid recent remote "
    "rural secret sharp silent simple single small smart solid stable steady sunny super swift tidy total upper urban "
    "valid visual vivid warm wide wild"
).split()
VERBS = "adjust assess build check compute derive estimate evaluate find measure plan predict rate scale shift".split()
LISTS = "values numbers items entries readings amounts samples scores".split()
LIMITS = "limit bound threshold cutoff border".split()
RESULTS = "result total outcome answer found".split()


class Draw:
    """Random choices that are a function of a key: equal on every platform and in every version of Python.

    The bits are SHA-256 digests of the key and of the number of the draw.

    Args:
        key: A string.
    """

    def __init__(self, key: str):
        self._key, self._count = key, 0

    def below(self, limit: int) -> int:
        """Draws an integer from 0 to limit - 1."""
        self._count += 1
        digest = hashlib.sha256(f"{self._key}/{self._count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % limit

    def between(self, low: int, high: int) -> int:
        """Draws an integer from `low` to `high`, both included."""
        return low + self.below(high - low + 1)

    def pick(self, options: Sequence):
        """Draws one of the options."""
        return options[self.below(len(options))]

    def several(self, options: Sequence, count: int) -> list:
        """Draws `count` different options, in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def numbers(self, count: int, low: int = 0, high: int = 40) -> list[int]:
        """Draws `count` integers from `low` to `high`."""
        return [self.between(low, high) for _ in range(count)]

    def of_a_kind(self, numbers: list[int]) -> tuple[str, list[int] | list[float]]:
        """Draws a type of numbers: "integer", or "real", for which half of each number is returned."""
        return ("real", [number / 2 for number in numbers]) if self.below(3) == 0 else ("integer", numbers)


class Names:
    """Names of one program, in which no noun occurs twice."""

    def __init__(self, draw: Draw):
        self._draw, self._nouns = draw, self._shuffled(draw)

    @staticmethod
    def _shuffled(draw: Draw) -> Iterator[str]:
        left = list(NOUNS)
        while left:
            yield left.pop(draw.below(len(left)))

    def noun(self) -> str:
        """A noun that the program does not have yet, such as "lantern"."""
        return next(self._nouns)

    def function(self) -> str:
        """A name for a function, such as "measure_lantern"."""
        return f"{self._draw.pick(VERBS)}_{self.noun()}"

    def type(self) -> str:
        """A name for a class, an enum or a trait, such as "QuietLantern"."""
        return self._draw.pick(ADJECTIVES).capitalize() + self.noun().capitalize()
