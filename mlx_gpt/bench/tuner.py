"""Finds the fastest exact settings for this device and model by measuring them, and remembers them for `train`.

One setting after the other, each kept if it is faster by more than the noise. What the user has fixed is left alone.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlx_gpt import backend
from mlx_gpt.bench.case import Case
from mlx_gpt.bench.race import OURS, TOLERANCES, Failed, Racer
from mlx_gpt.checkpoint.files import make_folder, write_atomic
from mlx_gpt.config import ModelConfig, cache_dir
from mlx_gpt.model.attention import FUSED_HEAD_DIMS

LIMIT_SECONDS = 280
NOISE = 0.98  # a setting must take less than this share of the time before it
TURNS, TURN_SECONDS = 3, 1.5
Settings = dict[str, object]


def tune(case: Case, given: Settings, note: Callable[[str], None]) -> dict:
    """{"settings": the best found, "ms_per_iter": their pace, "gain": over the defaults, "tried": all paces}."""
    until, best, tried = time.perf_counter() + LIMIT_SECONDS, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.npz")
        loss, first = _measured(case, {}, path)
        fastest = first
        note(f"defaults: {1000 * first:,.1f} ms/iter")
        for options in _stages(case.config.model):
            start = best
            for option in options:
                if option.keys() & given.keys() or time.perf_counter() > until:
                    continue
                name = ", ".join(f"{key}={value}" for key, value in option.items())
                try:
                    seconds = _seconds_if_same(case, start | option, path, loss)
                except Failed as failure:
                    note(f"{name}: {failure}")
                    continue
                tried[name] = round(1000 * seconds, 2)
                note(f"{name}: {1000 * seconds:,.1f} ms/iter")
                if seconds < NOISE * fastest:
                    best, fastest = start | option, seconds
    return {
        "settings": best,
        "ms_per_iter": round(1000 * fastest, 2),
        "gain": round(first / fastest, 3),
        "tried": tried,
    }


def keep(model: ModelConfig, found: dict) -> Path:
    """Remembers what tune() found for this device and shape."""
    path = _file()
    make_folder(path.parent)
    write_atomic(path, [json.dumps(_known() | {_place(model): found}, indent=1).encode()])
    return path


def tuned(model: ModelConfig) -> Settings:
    """The settings remembered for this device and shape; none with MLXGPT_TUNED=off."""
    if os.environ.get("MLXGPT_TUNED") == "off":
        return {}
    return _known().get(_place(model), {}).get("settings", {})


def _stages(model: ModelConfig) -> list[list[Settings]]:
    """Options in groups, the most telling first; of each group one at most is kept."""
    blocks = [{"speed.attention": "blocks", "speed.query_blocks": n} for n in (2, 4, 8)]
    if not backend.on_gpu():
        cores = backend.num_cores()
        lanes = sorted({1, max(cores // 2, 1), 2 * cores} - {cores})
        return [[{"speed.attention": "fused"}, *blocks], [{"speed.lanes": n} for n in lanes]]
    padded = [] if model.head_dim in FUSED_HEAD_DIMS else [{"speed.attention": "padded"}]
    buffers = [{"speed.ops_per_buffer": ops, "speed.mb_per_buffer": mb} for ops, mb in ((100, 200), (200, 1000))]
    return [[*padded, *blocks], [{"train.dtype": "bfloat16"}], buffers]


def _seconds_if_same(case: Case, settings: Settings, path: Path, expected: float) -> float:
    """Raises Failed where the first batch has another loss than expected."""
    loss, seconds = _measured(case, settings, path)
    if not abs(loss - expected) <= TOLERANCES[settings.get("train.dtype", case.config.train.dtype)][0]:
        raise Failed(f"has a loss of {loss:.6f} on the first batch, the defaults {expected:.6f}")
    return seconds


def _measured(case: Case, settings: Settings, path: Path) -> tuple[float, float]:
    """The loss on the first batch, and the seconds of an update: the best of a few turns."""
    case = dataclasses.replace(case, config=case.config.replace(settings))
    case.save(path)
    with contextlib.closing(Racer(OURS, path, case.config.speed)) as racer:
        loss = racer("losses", case.config.train.sequences_per_step)[0]
        count = max(1, int(TURN_SECONDS / racer("steps", 1)))
        return loss, min(racer("steps", count) / count for _ in range(TURNS))


def _file() -> Path:
    return cache_dir() / "tuned.json"


def _known() -> dict[str, dict]:
    try:
        known = json.loads(_file().read_text("utf-8"))
    except (OSError, ValueError):  # nothing tuned yet, or not our file: measuring again mends it
        return {}
    return {k: v for k, v in known.items() if isinstance(v, dict)} if isinstance(known, dict) else {}


def _place(model: ModelConfig) -> str:
    """What a measurement holds for: a device and a shape."""
    shape = ", ".join(f"{key}={value}" for key, value in model.shape().items())
    return f"{backend.chip()} ({backend.kind()}): {shape}"
