"""Laws of the loss: for which runs they hold, and that they are the curves through the committed results."""

import importlib

import numpy as np
import pytest
from constants import ROOT

from mlx_gpt.config import law
from mlx_gpt.config.budget import Budget, fitted, tokens_per_update
from mlx_gpt.config.law import LAWS, Law, predicted
from mlx_gpt.config.presets import resolve

TEXT = {"parameters": 1_788_416, "train_tokens": 1_003_854, "val_tokens": 111_540}
SHAKESPEARE = {"data.corpus": ("shakespeare",)}
EXAMPLE = Law(limit=1.0, scale=0.5, power=0.5, error=0.02, shortest=100_000, longest=2_000_000)


def run_of(preset, tokens, **changes):
    budget = Budget(tokens=tokens, **TEXT)
    return fitted(resolve(preset, None, SHAKESPEARE | {"train.tokens": tokens}), set(), budget).replace(changes), budget


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr(law, "LAWS", {"llama-s": EXAMPLE})


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments/learning")
    return importlib.import_module("laws")


@pytest.mark.parametrize("tokens, loss", [(100_000, 1 + 0.5 * 10**0.5), (1_000_000, 1.5), (2_000_000, 1 + 0.125**0.5)])
def test_a_law_predicts_the_loss_of_a_run_like_those_that_were_measured(example, tokens, loss):
    found = predicted(*run_of("llama-s", tokens))
    assert found == (pytest.approx(loss), 0.02)


@pytest.mark.parametrize(
    "preset, tokens, changes, why",
    [
        ("llama-m", 1_000_000, {}, "only runs of llama-s were"),
        ("llama-s", 1_000_000, {"model.n_layer": 4}, "only runs of llama-s were"),
        ("llama-s", 1_000_000, {"data.corpus": ("stdlib",)}, "corpus shakespeare"),
        ("llama-s", 99_000, {}, "from 100,000 to 2,000,000 tokens, and this one has 99,000"),
        ("llama-s", 2_000_001, {}, "has 2,000,001"),
        ("llama-s", 1_000_000, {"data.val_fraction": 0.2}, "had data.val_fraction=0.1, and this one has 0.2"),
        ("llama-s", 1_000_000, {"train.shuffle": False}, "train.shuffle=True"),
        ("llama-s", 1_000_000, {"train.entropy_weight": 1.0}, "train.entropy_weight=0.0"),
        ("llama-s", 1_000_000, {"train.eval_windows": 8}, "train.eval_windows=0"),
        ("llama-s", 1_000_000, {"data.tokenizer": "bpe"}, "data.tokenizer=char"),
        (
            "llama-s",
            1_000_000,
            {"optimizer.learning_rate": 1e-3},
            "optimizer.learning_rate=0.003, and this one has 0.001",
        ),
        ("llama-s", 1_000_000, {"optimizer.ema_decay": 0.9}, "optimizer.ema_decay=0.0"),
        ("llama-s", 1_000_000, {"model.dropout": 0.2}, "model.dropout=0.0 at this length"),
        ("llama-s", 1_000_000, {"train.grad_accum_steps": 2}, "updates of about 768 tokens at this length"),
    ],
)
def test_another_run_is_not_predicted_and_why_is_said(example, preset, tokens, changes, why):
    found = predicted(*run_of(preset, tokens, **changes))
    assert isinstance(found, str) and why in found


def test_settings_that_do_not_change_the_loss_do_not_matter(example):
    changes = {"train.seed": 5, "train.eval_every": 7, "train.sample_every": 3, "data.device_mb": 5, "speed.lanes": 1}
    assert predicted(*run_of("llama-s", 1_000_000, **changes)) == (pytest.approx(1.5), 0.02)


def test_the_length_of_a_run_is_in_whole_updates(example):
    tokens = 100_000 - 100_000 % tokens_per_update(run_of("llama-s", 100_000)[0])
    assert tokens < 100_000 and not isinstance(predicted(*run_of("llama-s", tokens)), str)


def test_settings_that_exclude_those_that_were_measured_are_no_error(example):
    changes = {"train.sync_every": 50, "train.eval_every": 100}
    assert "train.sync_every=0" in predicted(*run_of("llama-s", 1_000_000, **changes))


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_the_curve_through_the_committed_results(script, name):
    measured = script.measured(name)
    assert len(measured) >= 4
    assert script.fit_law(measured)[0] == LAWS[name]
    assert LAWS[name].limit > 0 and LAWS[name].scale > 0 and LAWS[name].power > 0


def test_the_fit_finds_the_curve_that_made_the_losses(script):
    losses = {n: [EXAMPLE.loss(n) - 0.01, EXAMPLE.loss(n) + 0.01] for n in script.LENGTHS}
    found, left_out = script.fit_law(losses)
    np.testing.assert_allclose((found.limit, found.scale, found.power), (1, 0.5, 0.5), atol=1e-3)
    np.testing.assert_allclose(list(left_out.values()), [EXAMPLE.loss(n) for n in losses], atol=1e-3)
    assert found.error == 0.02  # 0.01 and the difference of the curves, rounded up
