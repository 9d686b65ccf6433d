"""Finds the fastest settings for this device and network by measuring them.

All candidates compute the same function, but a compute type with fewer bits rounds more. Each candidate is compared
with the best settings so far, and replaces them if its gain exceeds the noise of the measurement. Settings that the
user has given are not changed. `mlx_gpt.run.tuned` stores the result, and `mlxgpt train` uses it.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlx_gpt.bench.case import Case
from mlx_gpt.bench.race import OURS, TOLERANCES, Failed, Racer
from mlx_gpt.device.lanes import num_cores
from mlx_gpt.device.mlx import kind, on_gpu

LIMIT_SECONDS = 280  # after this time no further candidate is started
NOISE = 0.98  # a candidate must take less than this fraction of the time of the best so far
TURNS, TURN_SECONDS = 3, 1.5  # turns of each side in a comparison, and the intended time of a turn
Settings = dict[str, object]  # dotted settings, such as {"speed.lanes": 2}


def tune(case: Case, given: Settings, note: Callable[[str], None]) -> dict:
    """Finds the fastest settings for a case.

    Each candidate and the best settings so far are measured in turns, so that a change in the machine's speed affects
    both. A candidate that fails is skipped, and `note` gets its error.

    Args:
        case: The model and data.
        given: Settings that the user has given. Candidates that would change one of them are skipped.
        note: Called with one line per candidate.

    Returns:
        A dictionary of:
            "settings": the fastest settings, {} if no candidate was faster than the defaults.
            "ms_per_iter": their milliseconds per update.
            "gain": their speed divided by that of the defaults.
            "tried": {candidate: its speed divided by that of the defaults}.

    Raises:
        Failed: The step cannot run with the default settings, or failed with the best settings so far.
    """
    until, best, gain, tried = time.perf_counter() + LIMIT_SECONDS, {}, 1.0, {}
    champion = Candidate(case, best)
    try:
        fastest = champion.seconds()
        note(f"defaults: {1000 * fastest:,.1f} ms/iter")
        for options in _stages():
            start = best  # of the stages before: options of one stage exclude each other, so they are not combined
            for option in options:
                if option.keys() & given.keys() or time.perf_counter() > until:
                    continue
                name = ", ".join(f"{key}={value}" for key, value in option.items())
                other = None
                try:
                    other = Candidate(case, start | option)
                    now, seconds = time_in_turns(champion, other)
                except Failed as failure:
                    if other:
                        other.close()
                    if champion.has_failed:
                        raise
                    note(f"{name}: {failure}")
                    continue
                # gain: speed of the best so far, relative to the defaults. now / seconds: speed of the candidate,
                # relative to the best so far.
                tried[name] = round(gain * now / seconds, 3)
                note(f"{name}: {1000 * seconds:,.1f} ms/iter, in turns with the best so far at {1000 * now:,.1f}")
                if other.loss_differs(champion):
                    note(
                        f"{name}: has a loss of {other.loss:.6f} on the first batch, expected {champion.loss:.6f}; "
                        "not kept"
                    )
                elif seconds < NOISE * now:
                    best, gain, fastest = start | option, gain * now / seconds, seconds
                    champion, other = other, champion
                other.close()
    finally:
        champion.close()
    return {"settings": best, "ms_per_iter": round(1000 * fastest, 2), "gain": round(gain, 3), "tried": tried}


class Candidate:
    """A process with a training step that has these settings, compiled and warmed up.

    Args:
        case: The model and data.
        settings: Dotted settings that replace those of the case.

    Attributes:
        loss: The loss of the first batch before the first update.
        has_failed: Whether a turn has failed.

    Raises:
        Failed: The step cannot run with these settings.
    """

    def __init__(self, case: Case, settings: Settings):
        self.config, self.has_failed = case.config.replace(settings), False
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "case.npz")
            dataclasses.replace(case, config=self.config).save(path)
            self._racer = Racer(OURS, path, self.config.speed)
        try:
            self.loss = self._racer("losses", self.config.train.sequences_per_step)[0]
            self._count = max(1, int(TURN_SECONDS / self._racer("steps", 1)))
        except Failed:
            self.close()
            raise

    def seconds(self) -> float:
        """Runs one turn and returns the seconds per update.

        Raises:
            Failed: The step failed, or the process ended.
        """
        try:
            return self._racer("steps", self._count) / self._count
        except Failed:
            self.has_failed = True
            raise

    def loss_differs(self, other: "Candidate") -> bool:
        """Whether the losses before the first update differ by more than the less precise compute type allows."""
        tolerance = max(TOLERANCES[c.config.train.dtype][0] for c in (self, other))
        return not abs(self.loss - other.loss) <= tolerance

    def close(self) -> None:
        self._racer.close()


def time_in_turns(one: Candidate, other: Candidate) -> tuple[float, float]:
    """Runs TURNS alternating turns. Returns the shortest seconds per update of each candidate."""
    turns = [(one.seconds(), other.seconds()) for _ in range(TURNS)]
    return tuple(map(min, zip(*turns, strict=True)))


def _stages() -> list[list[Settings]]:
    """Returns the candidates in stages, those with the largest expected gain first.

    At most one candidate of each stage is kept. The candidates of the next stage are added to it.
    """
    blocks = [{"speed.attention": "blocks", "speed.query_blocks": n} for n in (2, 4, 8)]
    if not on_gpu():
        cores = num_cores()
        lanes = sorted({1, max(cores // 2, 1), 2 * cores} - {cores})
        return [[{"speed.attention": "fused"}, *blocks], [{"speed.lanes": n} for n in lanes]]
    kernels = [{"speed.attention": name} for name in ("fused", "padded")]
    # MLX's own attention on Metal computes its gradient in tiles. Tiles narrower than the context skip masked scores.
    tiles = [{"speed.attention_tile": size} for size in (64, 128)] if kind() == "metal" else []
    buffers = [{"speed.ops_per_buffer": ops, "speed.mb_per_buffer": mb} for ops, mb in ((100, 200), (200, 1000))]
    return [[{"train.dtype": "bfloat16"}], [*kernels, *blocks], tiles, buffers]
