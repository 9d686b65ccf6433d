"""The number of attempts of each attack: few in the default suite, many in `make torture`.

The environment variable MLXGPT_TORTURE multiplies the number of attempts of `make torture`; it is 1 by default, which
takes about ten minutes on two cores. MLXGPT_TORTURE_SEED is the seed of all random choices, 0 by default.
"""

import os
import random

import pytest

FACTOR = float(os.environ.get("MLXGPT_TORTURE", "1"))
SEED = int(os.environ.get("MLXGPT_TORTURE_SEED", "0"))


@pytest.fixture
def draw():
    """The random numbers of an attack."""
    return random.Random(SEED)


@pytest.fixture(params=[pytest.param(False, id="short"), pytest.param(True, id="long", marks=pytest.mark.torture)])
def attempts(request, capsys):
    """A function that returns how many attempts a test makes: attempts(few, many). A long test prints the number."""

    def number(few: int, many: int) -> int:
        if not request.param:
            return few
        count = max(1, round(many * FACTOR))
        with capsys.disabled():
            print(f"\n{request.node.name}: {count:,} attempts, seed {SEED}", flush=True)
        return count

    return number
