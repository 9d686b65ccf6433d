"""Runs the contenders in turns on one case, checks that they compute the same, and gathers what they took.

One process a contender, so that libraries and peak memory stay apart; one works at a time, so that no one disturbs
another; round by round, so that a machine that slows down slows all of them.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mlx_gpt.bench.case import Case
from mlx_gpt.config.schema import SpeedConfig
from mlx_gpt.device.mlx import STOCK_ENVIRONMENT, buffer_variables, on_gpu
from mlx_gpt.errors import Disagreement, UserError
from mlx_gpt.model.cost import flops_per_token

OURS, PLAIN = "mlxgpt", "plain MLX"
ROUND_SECONDS = 2.0  # a contender's turn: one update, or as many as fit
MAX_STEPS = 100
BATCHES = (1, 16)  # sequences side by side where writing is timed
COMPARED = 16  # tokens that must be the same in all texts
RECOMPUTED = 10  # tokens written by recomputing everything
PLAIN_CPU_ROWS = 2  # a whole batch would take the plain loop minutes on a CPU; its tokens/s hardly depend on it
# How far apart two losses may lie: before an update, and after it.
TOLERANCES = {"float32": (1e-4, 2e-3), "bfloat16": (3e-2, 1e-1), "float16": (1e-2, 1e-1)}
STOCK = {"MLXGPT_BLAS": "off", "MLXGPT_KERNELS": "off", "MLX_BFS_MAX_WIDTH": "20"}


class Failed(UserError):
    """A contender that can't run, in its own words."""


class Racer:
    """A contender's process: call it with a method's name and arguments."""

    def __init__(self, name: str, case: Path, speed: SpeedConfig):
        command = [sys.executable, "-m", "mlx_gpt.bench.worker", name, str(case)]
        own = {PLAIN: STOCK, OURS: buffer_variables(speed)}
        environment = STOCK_ENVIRONMENT | own.get(name, {})
        self._name, self._complaints = name, tempfile.TemporaryFile("w+", errors="replace")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._complaints, text=True, env=environment
        )
        try:
            self.version = self._answer()
        except Failed:
            self.close()
            raise

    def __call__(self, method: str, *arguments):
        with contextlib.suppress(BrokenPipeError):  # it has ended; why, its answer will tell
            self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._complaints.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._complaints.seek(0)
            last = self._complaints.read().strip().splitlines()[-1:] or ["killed, perhaps for want of memory"]
            raise Failed(f"{self._name}: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["ok"]


def race(case: Case, names: list[str], rounds: int, note: Callable[[str], None]) -> dict:
    """What each contender took: {"training": {name: facts}, "parts": ..., "writing": ..., "matmul_gflops": ...}.

    Raises Disagreement where losses differ. A contender that can't run is left out, with a note that says why.
    """
    rows = {name: _rows(case, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.npz")
        case.save(path)
        with _started(names, path, case.config.speed, note) as racers:
            losses = _same_losses(racers, rows, case.config.train.dtype, note)
            times = _times(racers, rows, rounds, losses, note)
            result = {
                "training": {
                    name: _summary(case, racers[name], rows[name], times[name], losses[name]) for name in times
                },
                "matmul_gflops": round(racers[OURS]("matmul_rate"), 1),
                "parts": {k: round(1000 * v, 2) for k, v in racers[OURS]("parts", 5 * ROUND_SECONDS).items()},
            }
        # Afresh, as one writes: a process that has trained is another one.
        writers = [name for name in times if name in (OURS, "PyTorch")]
        with _started(writers, path, case.config.speed, note) as racers:
            return result | {"writing": _writing(racers, case, rounds)}


def _rows(case: Case, name: str) -> int:
    rows = case.config.train.sequences_per_step
    return min(rows, PLAIN_CPU_ROWS) if name == PLAIN and not on_gpu() else rows


@contextlib.contextmanager
def _started(names: Iterable[str], path: Path, speed: SpeedConfig, note) -> Iterator[dict[str, Racer]]:
    """The contenders that can run, until the end of the block."""
    with contextlib.ExitStack() as stack:
        racers = {}
        for name in names:
            try:
                racers[name] = stack.enter_context(contextlib.closing(Racer(name, path, speed)))
            except Failed as failure:
                _leave_out(name, failure, note)
        yield racers


def _leave_out(name: str, failure: Failed, note) -> None:
    """Goes on without a contender, and says why; without us there is nothing to go on with."""
    if name == OURS:
        raise UserError(f"bench: {failure}") from None
    note(f"{name} left out: {failure}")


def _same_losses(racers: dict[str, Racer], rows: dict[str, int], dtype: str, note) -> dict[str, list[float]]:
    """Each contender's losses before and after an update of the same batch, if they are ours."""
    found, ours = {}, {}
    for name, racer in racers.items():
        note(f"{name}: {racer.version}")
        try:
            found[name] = racer("losses", rows[name])
        except Failed as failure:
            _leave_out(name, failure, note)
            continue
        if rows[name] not in ours:
            ours[rows[name]] = found[name] if name == OURS else racers[OURS]("losses", rows[name])
        for a, b, tolerance in zip(found[name], ours[rows[name]], TOLERANCES[dtype], strict=True):
            if not abs(a - b) <= tolerance:
                raise Disagreement(
                    f"bench: {name} has losses of {found[name]} on the first batch and after an update of it, {OURS} "
                    f"{ours[rows[name]]}; times of different computations say nothing"
                )
    return found


def _same_texts(texts: dict[str, list[int]]) -> None:
    """The first of the likeliest tokens; later ones may part at a tie that rounding decides."""
    for name, text in texts.items():
        if text[:COMPARED] != texts[OURS][:COMPARED]:
            raise Disagreement(f"bench: {name} writes {text[:COMPARED]}, {OURS} {texts[OURS][:COMPARED]}")


def _times(racers, rows, rounds: int, names, note) -> dict[str, list[float]]:
    """Seconds of an update, one number a round; the first update of each is a warm-up that says how many fit."""

    def run(name: str, count: int) -> float:
        arguments = (count, rows[name]) if name == PLAIN else (count,)
        return racers[name]("steps", *arguments) / count

    counts = {name: max(1, min(MAX_STEPS, int(ROUND_SECONDS / run(name, 1)))) for name in names}
    times = {name: [] for name in counts}
    for turn in range(rounds):
        note(f"round {turn + 1} of {rounds}")
        for name, count in counts.items():
            times[name].append(run(name, count))
    return times


def _summary(case: Case, racer: Racer, rows: int, times: list[float], losses: list[float]) -> dict:
    model, tokens = case.config.model, rows * case.config.model.block_size
    seconds = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "version": racer.version,
        "rows": rows,
        "ms_per_iter": round(1000 * seconds, 2),
        "quartiles_ms": [round(1000 * low, 2), round(1000 * high, 2)],
        "rounds_ms": [round(1000 * t, 2) for t in times],
        "tokens_per_second": round(tokens / seconds, 1),
        "gflops": round(flops_per_token(model, case.vocab_size) * tokens / seconds / 1e9, 1),
        "losses": [round(loss, 6) for loss in losses],
        "peak_resident_bytes": racer("peak_resident"),
        "peak_device_bytes": racer("device_peak"),
    }


def _writing(racers: dict[str, Racer], case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens per second of reading and of writing, by contender and batch: medians of interleaved rounds."""
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in racers}
    tokens = {"recompute": RECOMPUTED}
    counts = {"prefill": case.config.model.block_size, "decode": case.written}
    tokens |= {f"{what} {batch}": batch * count for batch in BATCHES for what, count in counts.items()}
    for _ in range(rounds):
        texts = {}
        for name, racer in racers.items():
            for batch in BATCHES:
                times = seconds[name]
                times.setdefault(f"prefill {batch}", []).append(racer("prefill", batch))
                took, texts[name] = racer("decode", batch)
                times.setdefault(f"decode {batch}", []).append(took)
            if name == "PyTorch":
                times.setdefault("recompute", []).append(racer("recompute", RECOMPUTED))
        _same_texts(texts)
    return {
        name: {what: round(tokens[what] / statistics.median(times), 1) for what, times in found.items()}
        for name, found in seconds.items()
    }
