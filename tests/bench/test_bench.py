"""The bench: everyone computes the same, nobody who differs is timed, and what is tuned is measured, kept and used."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from constants import ROOT
from devices import cpu_only

from mlx_gpt.bench import race, report, tuner
from mlx_gpt.bench.case import Case
from mlx_gpt.bench.race import Failed, Racer
from mlx_gpt.bench.record import make_case
from mlx_gpt.config.presets import resolve
from mlx_gpt.device.mlx import STOCK_ENVIRONMENT
from mlx_gpt.device.report import device_report
from mlx_gpt.errors import Disagreement, InternalError
from mlx_gpt.run import start, tuned


@pytest.fixture
def case(tiny_config) -> Case:
    settings = {f"model.{k}": v for k, v in tiny_config.model.shape().items()}
    return make_case("model-xs", settings | {"train.batch_size": 4, "model.dropout": 0.0}, print)


def same(a: Case, b: Case) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Case) if f.name != "weights")
    weights = all(np.array_equal(w, b.weights[name]) for name, w in a.weights.items())
    return weights and all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


def test_a_case_is_what_was_saved(case, tmp_path):
    case.save(tmp_path / "case.npz")
    assert same(Case.load(tmp_path / "case.npz"), case)


@pytest.mark.parametrize("name", ["plain MLX", "PyTorch"])
def test_others_compute_our_losses_before_and_after_an_update(case, name, tmp_path):
    if name == "PyTorch":
        pytest.importorskip("torch")
    path = tmp_path / "case.npz"
    case.save(path)
    racers = {n: Racer(n, path, case.config.speed) for n in (race.OURS, name)}
    found = race.compare_losses(racers, {race.OURS: 4, name: 3}, "float32", print)
    assert found[name][1] < found[name][0]
    assert racers[name]("peak_resident") > 1e7
    for racer in racers.values():
        racer.close()


def test_the_process_of_another_contender_loads_nothing_of_ours():
    """Its memory is measured, and the plain loop takes MLX's own BLAS."""
    code = "import sys, mlx_gpt.bench.worker; print([m for m in ('mlx.core', 'mlx_gpt.device') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


class Fake:
    """A contender that says what it is told to."""

    version = "fake"

    def __init__(self, losses):
        self.losses = losses

    def __call__(self, method, *_):
        if isinstance(self.losses, Failed):
            raise self.losses
        return self.losses


@pytest.mark.parametrize("losses", [[4.2, 4.1], [4.0, 4.2], [float("nan"), 4.0]])
def test_whoever_computes_something_else_ends_the_bench(losses):
    racers = {race.OURS: Fake([4.0, 3.9]), "PyTorch": Fake(losses)}
    with pytest.raises(Disagreement, match="PyTorch has losses"):
        race.compare_losses(racers, {race.OURS: 1, "PyTorch": 1}, "float32", print)


def test_whoever_writes_something_else_ends_the_bench():
    race.compare_texts({race.OURS: [1, 2, 3], "PyTorch": [1, 2, 3]})
    with pytest.raises(Disagreement, match="PyTorch generates"):
        race.compare_texts({race.OURS: [1, 2, 3], "PyTorch": [1, 2, 4]})


def test_whoever_fails_is_left_out_with_a_word_but_we_never():
    notes = []
    racers = {race.OURS: Fake([4.0, 3.9]), "PyTorch": Fake(Failed("no room"))}
    rows = {race.OURS: 1, "PyTorch": 1}
    assert set(race.compare_losses(racers, rows, "float32", notes.append)) == {race.OURS}
    assert "PyTorch left out: no room" in notes
    with pytest.raises(InternalError, match="no room"):
        race.compare_losses({race.OURS: Fake(Failed("no room"))}, rows, "float32", print)


def test_a_contender_that_dies_is_one_line(case, tmp_path):
    case.save(tmp_path / "case.npz")
    racer = Racer(race.OURS, tmp_path / "case.npz", case.config.speed)
    os.kill(racer.pid, signal.SIGKILL)
    with pytest.raises(Failed, match="mlxgpt: killed"):
        racer("steps", 1)
    racer.close()


def test_a_library_that_is_absent_is_named(case, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.setitem(STOCK_ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    case.save(tmp_path / "case.npz")
    with pytest.raises(Failed, match="needs torch; pip install .* installs it"):
        Racer("PyTorch", tmp_path / "case.npz", case.config.speed)


def result(case) -> dict:
    facts = {
        "version": "1", "rows": 4, "ms_per_iter": 10.0, "quartiles_ms": [9.0, 11.0], "rounds_ms": [10.0],
        "tokens_per_second": 25600.0, "gflops": 50.0, "losses": [4.0, 3.9], "peak_resident_bytes": 10**9,
        "peak_device_bytes": 10**8,
    }  # fmt: skip
    return {
        "config": case.config.to_dict(), "parameters": 1000, "bytes_per_step": 10**8, "matmul_gflops": 100.0,
        "training": {"mlxgpt": facts, "PyTorch": facts | {"tokens_per_second": 12800.0}},
        "parts": {"data": 0.1, "forward": 3.0}, "writing": {"mlxgpt": {"decode 1": 500.0}},
    }  # fmt: skip


def test_tables_say_ratio_and_share(case):
    text = "\n".join(report.lines("model-l", result(case)))
    assert "2.00 x" in text and "50%" in text and "decode 1" in text and "10.0 GB/s" in text
    assert "published" not in text  # only beside the batch that was published


def test_the_picture_is_drawn(case, tmp_path):
    pytest.importorskip("matplotlib")
    report.draw(tmp_path / "bars.png", {"model-l": result(case)}, device_report())
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def known(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "_file", lambda: tmp_path / "cache" / "tuned.json")
    monkeypatch.delenv("MLXGPT_TUNED")
    return tmp_path / "cache" / "tuned.json"


class Measured:
    """A stand-in for the measurement: what each setting multiplies the time by; under a tenth the loss is another.

    Settings of the cost inf fail when they are timed.
    """

    costs: dict = {}
    running: set = set()

    def __init__(self, case, settings):
        self.has_failed = False
        self.running.add(self)
        self.time = float(np.prod([self.costs.get(item, 1.0) for item in settings.items()]))
        self.loss = 9.0 if self.time < 0.1 else 4.0

    def seconds(self):
        if self.time == np.inf:
            self.has_failed = True
            raise Failed("mlxgpt: killed")
        return self.time

    def loss_differs(self, other):
        return self.loss != other.loss

    def close(self):
        self.running.remove(self)


def test_the_tuner_keeps_what_is_faster_and_computes_the_same(case, monkeypatch):
    costs = {("speed.query_blocks", 2): 0.9, ("speed.query_blocks", 8): 0.8, ("speed.lanes", 1): 0.99}
    monkeypatch.setattr(tuner, "Candidate", Measured)
    monkeypatch.setattr(Measured, "costs", costs | {("speed.attention", "fused"): 0.01})
    notes = []
    found = tuner.tune(case, {}, notes.append)
    assert found["settings"] == {"speed.attention": "blocks", "speed.query_blocks": 8}  # 0.99 is noise, 0.01 is wrong
    assert found["gain"] == pytest.approx(1 / 0.8)
    assert any("has a loss of 9" in note for note in notes)


@cpu_only("lanes")
def test_what_the_user_fixed_is_not_tuned(case, monkeypatch):
    monkeypatch.setattr(tuner, "Candidate", Measured)
    monkeypatch.setattr(tuner, "num_cores", lambda: 2)
    monkeypatch.setattr(Measured, "costs", {("speed.query_blocks", 8): 0.5, ("speed.lanes", 1): 0.5})
    assert tuner.tune(case, {"speed.attention": "blocks"}, print)["settings"] == {"speed.lanes": 1}


def test_on_metal_the_tuner_tries_kernels_types_tiles_and_buffers(case, monkeypatch):
    monkeypatch.setattr(tuner, "Candidate", Measured)
    monkeypatch.setattr(tuner, "on_gpu", lambda: True)
    monkeypatch.setattr(tuner, "kind", lambda: "metal")
    monkeypatch.setattr(Measured, "costs", {("speed.attention", "fused"): 0.9, ("speed.attention_tile", 128): 0.5})
    found = tuner.tune(case, {}, print)
    assert found["settings"] == {"speed.attention": "fused", "speed.attention_tile": 128}
    tried = {setting.split("=")[0] for name in found["tried"] for setting in name.split(", ")}
    assert tried >= {"train.dtype", "speed.attention", "speed.query_blocks", "speed.ops_per_buffer"}


def test_a_candidate_that_fails_while_it_is_timed_is_skipped(case, monkeypatch):
    monkeypatch.setattr(tuner, "Candidate", Measured)
    monkeypatch.setattr(Measured, "costs", {("speed.query_blocks", 2): np.inf, ("speed.query_blocks", 8): 0.5})
    notes = []
    found = tuner.tune(case, {}, notes.append)
    assert found["settings"] == {"speed.attention": "blocks", "speed.query_blocks": 8} and not Measured.running
    assert "speed.attention=blocks, speed.query_blocks=2: mlxgpt: killed" in notes
    assert not any("query_blocks=2" in name for name in found["tried"])


def test_a_tuner_whose_best_settings_fail_ends_and_leaves_no_process(case, monkeypatch):
    class Dying(Measured):
        def loss_differs(self, other):
            self.time = other.time = np.inf  # from now on, every turn fails
            return True

    monkeypatch.setattr(tuner, "Candidate", Dying)
    with pytest.raises(Failed, match="killed"):
        tuner.tune(case, {}, print)
    assert not Measured.running


def test_a_process_that_dies_while_it_is_timed_has_failed(case, monkeypatch):
    monkeypatch.setattr(tuner, "TURN_SECONDS", 0.1)
    racer = tuner.Racer

    def started(*arguments):
        started.racer = racer(*arguments)
        return started.racer

    monkeypatch.setattr(tuner, "Racer", started)
    with contextlib.closing(tuner.Candidate(case, {})) as candidate:
        assert not candidate.has_failed
        os.kill(started.racer.pid, signal.SIGKILL)
        with pytest.raises(Failed):
            candidate.seconds()
        assert candidate.has_failed


def test_what_was_tuned_is_used_said_and_overridden(case, known):
    model = resolve("model-l").model
    tuned.keep(model, {"settings": {"speed.query_blocks": 8, "speed.lanes": 1}, "ms_per_iter": 1.0})
    tuned.keep(resolve("model-s").model, {"settings": {"speed.lanes": 3}})
    notes = []
    config = start.resolved("model-l", None, {"speed.lanes": 2}, notes.append)
    assert (config.speed.query_blocks, config.speed.lanes) == (8, 2)
    assert "tuned for this device: speed.query_blocks=8 (" in notes[0]
    assert start.resolved("model-s", None, {}, print).speed.lanes == 3
    notes.clear()
    assert start.resolved("model-m", None, {}, notes.append) == resolve("model-m") and not notes


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "\x00"])
def test_a_broken_memory_of_tuning_is_no_harm(text, known):
    known.parent.mkdir()
    known.write_text(text)
    assert tuned.settings_for(resolve("model-l").model) == {}


@pytest.mark.parametrize("settings", [{"speed.attention": "flash"}, {"speed.gone": 1}, {"a": 1}, {"train.iters": "x"}])
def test_settings_of_another_version_are_no_harm(settings, known):
    model = resolve("model-l").model
    tuned.keep(model, {"settings": settings})
    assert tuned.settings_for(model) == {}


def test_a_candidate_is_the_real_step(case, monkeypatch):
    monkeypatch.setattr(tuner, "TURN_SECONDS", 0.1)
    one, other = (tuner.Candidate(case, settings) for settings in ({}, {"speed.attention": "fused"}))
    assert one.loss == pytest.approx(np.log(case.vocab_size), abs=0.2) and not one.loss_differs(other)
    assert all(0 < seconds < 60 for seconds in tuner.time_in_turns(one, other))
    one.close(), other.close()
