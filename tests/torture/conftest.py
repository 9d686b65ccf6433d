"""The number of attempts of each attack: few in the default suite, many in `make torture`.

The environment variable MLXGPT_TORTURE multiplies the number of attempts of `make torture`; it is 1 by default.
MLXGPT_TORTURE_SEED is the seed of all random choices, 0 by default. At its end, `make torture` prints how many attempts
each test has made.
"""

import math
import os
import random
from collections import Counter

import pytest

FACTOR = float(os.environ.get("MLXGPT_TORTURE", "1"))
SEED = int(os.environ.get("MLXGPT_TORTURE_SEED", "0"))
COUNTS = pytest.StashKey[Counter]()
LONG = pytest.param(True, id="long", marks=pytest.mark.torture)


@pytest.fixture
def draw():
    """The random numbers of an attack."""
    return random.Random(SEED)


@pytest.fixture
def tally(request):
    """A function that adds attempts to the number that the summary shows for this test."""
    counts = request.config.stash.setdefault(COUNTS, Counter())

    def add(count: int = 1) -> None:
        counts[request.node.originalname.removeprefix("test_").replace("_", " ")] += count

    return add


@pytest.fixture(params=[pytest.param(False, id="short"), LONG])
def attempts(request, tally):
    """A function that returns how many attempts a test makes: attempts(few, many), or attempts(few, many, most)."""

    def number(few: int, many: int, most: float = math.inf) -> int:
        count = min(max(1, round(many * FACTOR)) if request.param else few, most)
        tally(count)
        return count

    return number


@pytest.fixture(params=[LONG])
def long_attempts(request, tally):
    """Like `attempts`, for tests that have no short form: long_attempts(many), or long_attempts(many, most)."""

    def number(many: int, most: float = math.inf) -> int:
        count = min(max(1, round(many * FACTOR)), most)
        tally(count)
        return count

    return number


def pytest_terminal_summary(terminalreporter, config):
    """Prints the attempts of each test, if tests of `make torture` were selected."""
    counts = config.stash.get(COUNTS, None)
    if not counts or "not torture" in config.getoption("markexpr"):
        return
    terminalreporter.section(f"attempts, seed {SEED}")
    for name, count in counts.items():
        terminalreporter.write_line(f"{count:>9,}  {name}")
    terminalreporter.write_line(f"{counts.total():>9,}  in all")
