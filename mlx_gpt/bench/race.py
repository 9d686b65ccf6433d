"""Runs the contenders in turns on one case, checks that they compute the same losses, and collects their times.

Each contender has its own process, so that libraries and peak memory are separate. Only one contender computes at a
time, so that they do not slow each other down. Every contender takes a turn in every round, so that a change in the
machine's speed affects all of them.
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
from mlx_gpt.device.mlx import STOCK_ENVIRONMENT, on_gpu, speed_variables
from mlx_gpt.errors import Disagreement, InternalError
from mlx_gpt.model.cost import flops_per_token

OURS, PLAIN = "mlxgpt", "plain MLX"
ROUND_SECONDS = 2.0  # intended time of one turn: it makes as many updates as fit, at least one
MAX_STEPS = 100  # updates of a turn
BATCHES = (1, 16)  # numbers of sequences for which generation is timed
COMPARED = 16  # this many generated tokens must be equal in all contenders
RECOMPUTED = 10  # tokens generated when generation without a cache is measured
# Sequences per update of the plain loop on a CPU, where a whole batch takes minutes. Its tokens per second hardly
# depend on the number of sequences.
PLAIN_CPU_ROWS = 2
# Compute type -> largest allowed difference between the losses of two contenders, before an update and after it.
TOLERANCES = {"float32": (1e-4, 2e-3), "bfloat16": (3e-2, 1e-1), "float16": (1e-2, 1e-1)}
# Environment of the plain loop. The loop imports mlx_gpt.device.mlx, which would otherwise load a tuned BLAS, install
# vectorized kernels and set another MLX_BFS_MAX_WIDTH. 20 is MLX's default width.
STOCK = {"MLXGPT_BLAS": "off", "MLXGPT_KERNELS": "off", "MLX_BFS_MAX_WIDTH": "20"}


class Failed(InternalError):
    """A contender cannot run, or its process ended. The message is the contender's own error."""


class Racer:
    """The process of one contender: `racer("steps", 10)` calls steps(10) of the contender and returns its result.

    Args:
        name: A key of CONTENDERS.
        case: The file of the case.
        speed: Some of these settings are MLX environment variables, which are set for mlxgpt's process only.

    Raises:
        Failed: By the constructor if the contender cannot be built, and by a call if the method raised an error or the
            process ended.
    """

    def __init__(self, name: str, case: Path, speed: SpeedConfig):
        command = [sys.executable, "-m", "mlx_gpt.bench.worker", name, str(case)]
        own = {PLAIN: STOCK, OURS: speed_variables(speed)}
        environment = STOCK_ENVIRONMENT | own.get(name, {})
        # A file, because a pipe that nobody reads would block the process once it is full.
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

    @property
    def pid(self) -> int:
        """The id of the contender's process."""
        return self._process.pid

    def __call__(self, method: str, *arguments):
        with contextlib.suppress(BrokenPipeError):  # the process has ended; _answer() raises its error
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
            last = self._complaints.read().strip().splitlines()[-1:] or ["killed, possibly because memory ran out"]
            raise Failed(f"{self._name}: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["ok"]


def race(case: Case, names: list[str], rounds: int, note: Callable[[str], None]) -> dict:
    """Measures training with all contenders, then generation with "mlxgpt" and "PyTorch".

    Args:
        case: The input of all contenders.
        names: The contenders, keys of CONTENDERS. "mlxgpt" must be among them. A contender that cannot run is left out,
            and a note gives the reason.
        rounds: The number of turns per contender.
        note: Called with one line for each thing the user should know.

    Returns:
        A dictionary of:
            "training": {contender: measurements, see _summary}.
            "matmul_gflops": the rate of MLX's matrix product.
            "parts": {part of mlxgpt's step: milliseconds}.
            "writing": {contender: {measurement: tokens/s}}; the measurements are "prefill 1", "prefill 16", "decode 1",
                "decode 16" and "recompute", where the number is that of sequences.

    Raises:
        Disagreement: The losses or the generated tokens of a contender differ from those of mlxgpt.
        Failed: mlxgpt itself cannot run.
    """
    rows = {name: _rows(case, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.npz")
        case.save(path)
        with _started(names, path, case.config.speed, note) as racers:
            losses = compare_losses(racers, rows, case.config.train.dtype, note)
            times = _times(racers, rows, rounds, losses, note)
            result = {
                "training": {
                    name: _summary(case, racers[name], rows[name], times[name], losses[name]) for name in times
                },
                "matmul_gflops": round(racers[OURS]("matmul_rate"), 1),
                "parts": {k: round(1000 * v, 2) for k, v in racers[OURS]("parts", 5 * ROUND_SECONDS).items()},
            }
        # Generation is timed in new processes, because users do not generate in the process that has trained: such a
        # process still holds the memory of training.
        writers = [name for name in times if name in (OURS, "PyTorch")]
        with _started(writers, path, case.config.speed, note) as racers:
            return result | {"writing": _writing(racers, case, rounds)}


def _rows(case: Case, name: str) -> int:
    """Returns the number of sequences per update of a contender."""
    rows = case.config.train.sequences_per_step
    return min(rows, PLAIN_CPU_ROWS) if name == PLAIN and not on_gpu() else rows


@contextlib.contextmanager
def _started(names: Iterable[str], path: Path, speed: SpeedConfig, note) -> Iterator[dict[str, Racer]]:
    """A context that starts the processes of the contenders and yields those that can run. It ends them on exit."""
    with contextlib.ExitStack() as stack:
        racers = {}
        for name in names:
            try:
                racers[name] = stack.enter_context(contextlib.closing(Racer(name, path, speed)))
            except Failed as failure:
                _leave_out(name, failure, note)
        yield racers


def _leave_out(name: str, failure: Failed, note) -> None:
    """Notes why a contender is left out.

    Raises:
        Failed: The contender is mlxgpt, which all others are compared with.
    """
    if name == OURS:
        raise failure
    note(f"{name} left out: {failure}")


def compare_losses(racers: dict[str, Racer], rows: dict[str, int], dtype: str, note) -> dict[str, list[float]]:
    """Returns each contender's two losses on the same batch: before and after an update.

    A contender that uses fewer sequences is compared with mlxgpt on as many sequences.

    Raises:
        Disagreement: A loss differs from mlxgpt's by more than TOLERANCES allows, or is not finite.
    """
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
            if not abs(a - b) <= tolerance:  # true for NaN as well
                raise Disagreement(
                    f"bench: {name} has losses {found[name]} on the first batch before and after an update, {OURS} has "
                    f"{ours[rows[name]]}; times of different computations cannot be compared"
                )
    return found


def compare_texts(texts: dict[str, list[int]]) -> None:
    """Raises Disagreement unless all contenders generate the same first COMPARED tokens with greedy decoding.

    Later tokens may differ: rounding can decide between two tokens of nearly equal probability.
    """
    for name, text in texts.items():
        if text[:COMPARED] != texts[OURS][:COMPARED]:
            raise Disagreement(
                f"bench: {name} generates the ids {text[:COMPARED]}, {OURS} generates {texts[OURS][:COMPARED]}; times "
                "of different computations cannot be compared"
            )


def _times(racers, rows, rounds: int, names, note) -> dict[str, list[float]]:
    """Measures the contenders `names` in turns. Returns seconds per update, one number per round.

    The two updates of the loss check have warmed up each contender. The time of one more update determines how many
    updates a turn has.
    """

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
    """Returns what the record holds of a contender's training: times, rates, losses and peak memory.

    Args:
        case: The input of all contenders.
        racer: The contender.
        rows: The number of sequences of an update.
        times: Seconds per update, one number per round. Rates are computed from their median.
        losses: The losses before and after an update.
    """
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
    """Measures generation in turns. Returns tokens per second by contender and measurement, medians of the rounds."""
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
        compare_texts(texts)
    return {
        name: {what: round(tokens[what] / statistics.median(times), 1) for what, times in found.items()}
        for name, found in seconds.items()
    }
