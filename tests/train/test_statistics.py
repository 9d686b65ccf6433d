"""Statistics of the weights: what they count, that they change nothing, and what they need."""

import gc

import numpy as np
import pytest
from networks import TERNARY, network
from training import assert_same_state, timeless, trainer

from mlx_gpt.checkpoint import store
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.ternary import quantize
from mlx_gpt.train.reports import EvalReport, StepReport
from mlx_gpt.train.saving import LATEST
from mlx_gpt.train.statistics import Statistics


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.replace({"model.linear": "ternary", "train.iters": 12, "train.eval_every": 3})


def evaluations(reports):
    return [report for report in reports if isinstance(report, EvalReport)]


@pytest.mark.parametrize("group", ["tensor", "row"])
def test_zeros_and_changes_are_counted_in_each_layer_and_in_total(group):
    model, draw = network(TERNARY | {"ternary_group": group}), np.random.default_rng(0)
    statistics, states = Statistics(model.config), []
    for _ in range(2):
        weights = {k: w + mx.array(draw.normal(size=w.shape) * 0.2) for k, w in model.weights().items()}
        found = statistics(weights)
        matrices = {k: w for k, w in weights.items() if k.startswith("layers.") and w.ndim == 2}
        states.append({k: np.array(quantize(w, group)[0]) for k, w in matrices.items()})
        for prefix in ("", "layers.0.", "layers.1."):
            own = [k for k in matrices if k.startswith(prefix)]
            trits = [np.concatenate([state[k].ravel() for k in own]) for state in states]
            assert found[f"{prefix}zeros"] == (trits[-1] == 0).mean()
            if len(states) == 2:
                assert 0 < found[f"{prefix}changed"] == (trits[0] != trits[1]).mean()
        names = {"zeros"} if len(states) == 1 else {"zeros", "changed"}
        assert found.keys() == {p + name for p in ("", "layers.0.", "layers.1.") for name in names}


def test_one_byte_for_each_trit_is_kept_and_nothing_for_a_dense_network():
    config = ModelConfig(n_embd=128, n_head=4, n_layer=2, block_size=16, **TERNARY)
    weights = GPT(config, 11).weights()
    mx.eval(weights)
    statistics, before = Statistics(config), mx.get_active_memory()
    statistics(weights)
    gc.collect()
    ternary = sum(w.size for k, w in weights.items() if k.startswith("layers.") and w.ndim == 2)
    assert mx.get_active_memory() - before < 1.1 * ternary  # the allocator adds a header to each array
    assert Statistics(network({}).config)({}) == {}


def test_statistics_change_no_weight_and_a_resumed_run_only_lacks_its_first_changes(tmp_path, config):
    (tmp_path / "plain").mkdir()
    plain = trainer(tmp_path / "plain", config)
    plain._statistics = lambda weights: {}
    without = list(plain.run())
    whole = list(trainer(tmp_path, config).run())
    final = store.load(tmp_path / LATEST)
    assert timeless(whole) == timeless(without)
    assert_same_state(final, store.load(tmp_path / "plain" / LATEST))
    (tmp_path / "cut").mkdir()
    first, seen = trainer(tmp_path / "cut", config), []
    for report in first.run():
        seen.append(report)
        if isinstance(report, StepReport) and report.step == 4:
            first.stop()
    seen += trainer(tmp_path / "cut", config, store.load(tmp_path / "cut" / LATEST)).run()
    assert timeless(seen) == timeless(whole)
    assert_same_state(store.load(tmp_path / "cut" / LATEST), final)
    metrics = [report.shares for report in evaluations(whole)]
    assert ["changed" in found for found in metrics] == [False, True, True, True]
    assert all(0 < found["zeros"] < 1 for found in metrics)
    resumed = [report.shares for report in evaluations(seen)]
    assert ["changed" in found for found in resumed] == [False, False, True, True]
    unchanged = {k: v for k, v in metrics[1].items() if not k.endswith("changed")}
    assert resumed == [metrics[0], unchanged, *metrics[2:]]
