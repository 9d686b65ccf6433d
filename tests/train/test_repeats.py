"""Training steps compute the same bits again, whichever memory the outputs are written to.

MLX overwrites an input array with the output if nothing else refers to the input. References that the test keeps decide
this for each array.
"""

import numpy as np
import pytest
from constants import TINY
from mlx.utils import tree_flatten
from training import V, tokens

from mlx_gpt import rng
from mlx_gpt.config.presets import resolve
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.lanes import lanes
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.optim.optimizers import RULES, Optimizer
from mlx_gpt.train.objective import CrossEntropy
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.step import initial_state, make_step

STEPS = 4


@pytest.fixture(autouse=True)
def default_lanes():
    """Restores the number of lanes."""
    yield
    lanes(0)


def runs_of(settings, kept):
    """Trains one run for each share in `kept`, and yields the bits of its outputs and of its last state.

    Args:
        settings: Settings that differ from TINY.
        kept: For each run, the share of the arrays of every state that stay referenced during the next step. Other
            arrays of random sizes are allocated and freed between the steps.
    """
    config = resolve(overrides=TINY | {"train.batch_size": 4, "optimizer.learning_rate": 3e-4} | settings)
    model = GPT(config.model, V, seed=1, speed=config.speed)
    optimizer = Optimizer(config.optimizer, roles_of(config.model, V))
    windows = Windows(tokens(800, 0), config.model.block_size)
    step = make_step(model, optimizer, CrossEntropy(config), windows.gather, Alone(), config)
    first = {name: np.array(w) for name, w in model.weights().items()}
    for number, share in enumerate(kept):
        draw, references, bits = np.random.default_rng(number), [], []
        state = initial_state({name: mx.array(w) for name, w in first.items()}, optimizer)
        for i in range(STEPS):
            spans = windows.read(windows.draw(0, rng.WINDOWS, i, config.train.sequences_per_step))
            references = [a for _, a in tree_flatten(state) if draw.random() < share]
            references += [mx.ones(size) for size in draw.integers(1, 1 << 16, 4).tolist()]
            mx.eval(references)
            state, output = step(state, mx.array(3e-4), mx.array(i, dtype=mx.uint32), *map(mx.array, spans))
            mx.eval(state, output)
            bits += [output.loss.item().hex(), output.grad_norm.item().hex()]
        yield bits, {name: np.array(a).tobytes() for name, a in tree_flatten(state)}


def test_a_run_is_the_same_whether_or_not_its_states_are_overwritten():
    """Lion has the update whose rounding g++ makes depend on this, if it may contract arithmetic."""
    first, *others = runs_of({"optimizer.name": "lion"}, kept=[0, 1, 0.5, 0.5])
    for other in others:
        assert other == first


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["fused", "padded", "blocks"])
@pytest.mark.parametrize("num_lanes", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
@pytest.mark.parametrize("name", RULES)
def test_twenty_runs_are_equal_bit_for_bit(name, ema_decay, dtype, num_lanes, attention):
    settings = {"optimizer.name": name, "optimizer.ema_decay": ema_decay, "train.dtype": dtype}
    settings |= {"speed.lanes": num_lanes, "speed.attention": attention}
    first, *others = runs_of(settings, kept=[0, 1] + [0.5] * 18)
    for other in others:
        assert other == first
