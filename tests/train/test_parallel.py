"""What the ranks of a group exchange: numbers, arrays, rows of a batch, evaluations, and results of divided work."""

from functools import partial

import numpy as np
import pytest
from crew import together
from training import V, timeless, tokens, trainer

from mlx_gpt.data.windows import Windows
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import GroupFailed
from mlx_gpt.model.gpt import GPT
from mlx_gpt.optim.optimizers import NEWTON_SCHULZ, orthogonal
from mlx_gpt.train.evaluate import Evaluator
from mlx_gpt.train.parallel import Alone, agree, bytes_of_first, divided, of_rank, require_equal, share

SLOW = pytest.mark.slow


def test_a_flag_of_any_rank_counts_on_all():
    assert together(3, lambda group: agree(group, group.rank == 1, False, True)) == [[True, False, True]] * 3


def test_all_ranks_get_the_arrays_and_bytes_of_one():
    def run(group):
        tree = {"a": mx.full(2, group.rank), "b": [mx.array(group.rank)]}
        found = of_rank(group, 2, tree)
        return found["a"].tolist(), found["b"][0].item(), bytes_of_first(group, b"text" * (group.rank == 0))

    assert together(3, run) == [([2, 2], 2, b"text")] * 3


@pytest.mark.parametrize("size, rows", [(1, 5), (2, 4), (3, 7), (5, 5)])
def test_the_shares_of_a_batch_are_its_rows_in_order(size, rows):
    class Rank(Alone):
        def __init__(self, rank):
            self.rank, self.size = rank, size

    shares = [list(range(rows))[share(Rank(rank), rows)] for rank in range(size)]
    assert sum(shares, []) == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_with_other_weights_is_named():
    def run(group):
        weights = {"a": mx.ones(5), "b": mx.zeros(3) if group.rank < 2 else mx.array([0.0, 1e-30, 0.0])}
        require_equal(group, {"a": weights["a"]}, 7)
        require_equal(group, weights, 8)

    with pytest.raises(GroupFailed, match="after step 8, the weights of rank 2 differ from those of rank 0"):
        together(3, run)


def test_a_divided_orthogonalization_is_the_whole_one_bit_for_bit():
    random = np.random.default_rng(0)
    shapes = {"a": (4, 8), "b": (8, 4), "c": (3, 4, 4), "d": (4, 8), "e": (5, 5)}
    matrices = {name: mx.array(random.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    polar = partial(orthogonal, steps=NEWTON_SCHULZ["polar"])
    whole = polar(matrices)
    for found in together(2, lambda group: divided(group, polar, matrices)):
        assert list(found) == list(matrices)
        assert all(np.array_equal(found[name], whole[name]) for name in shapes)


@pytest.mark.parametrize("size", [3, 9])
def test_a_divided_evaluation_is_the_whole_one_bit_for_bit(tiny_config, size):
    def run(group):
        model, windows = GPT(tiny_config.model, V, 1), Windows(tokens(900, 3), tiny_config.model.block_size)
        evaluator = Evaluator(model, windows, np.ones(V, np.int32), "float32", group)
        batches = windows.sweep(2)
        assert len(batches) == 8  # some ranks have fewer batches than others, and one of nine has none
        stops = evaluator(model.weights(), batches, lambda: group.rank == 1)
        return evaluator(model.weights(), batches), stops

    [(whole, _)] = together(1, run)
    assert together(size, run) == [(whole, None)] * size


def losses(config, folder, ranks):
    folder.mkdir(exist_ok=True)
    reports = together(ranks, lambda group: timeless(trainer(folder, config, group=group).run()))
    assert reports == reports[:1] * ranks
    return [loss for kind, _, loss, *_ in reports[0] if kind == "StepReport"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "iters, bounds", [(10, {"adamw": 5e-5, "muon": 5e-5}), pytest.param(200, {"adamw": 1e-3, "muon": 1e-5}, marks=SLOW)]
)
def test_ranks_train_as_one_process(tiny_config, tmp_path, optimizer, iters, bounds):
    """The losses stay as close as those of one process with other numbers of lanes do."""
    changes = {"optimizer.name": optimizer, "train.iters": iters, "train.eval_every": 1000, "train.sample_every": 0}
    changes |= {"model.block_size": 16, "model.n_layer": 1}
    config = tiny_config.replace(changes | {"train.batch_size": 2, "train.grad_accum_steps": 2})
    one, three = (losses(config, tmp_path / str(ranks), ranks) for ranks in (1, 3))
    np.testing.assert_allclose(three, one, atol=bounds[optimizer], rtol=0)
