"""Runs the contenders in turns on one case, checks that they compute the same losses, and collects their times.

Each contender has its own process, so that libraries and peak memory are separate. Only one computes at a time, so that
they do not slow each other down. All take a turn in every round, so that a change in the machine's speed affects all.
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
ROUND_SECONDS = 2.0  # of a contender's turn: as many updates as fit, at least one
MAX_STEPS = 100
BATCHES = (1, 16)  # numbers of sequences for which generation is timed
COMPARED = 16  # generated tokens that must be equal in all contenders
RECOMPUTED = 10  # tokens generated without a cache
PLAIN_CPU_ROWS = 2  # on a CPU the plain loop needs minutes for a whole batch; its tokens/s hardly depend on the rows
# Largest allowed difference between two losses: before an update, and after it.
TOLERANCES = {"float32": (1e-4, 2e-3), "bfloat16": (3e-2, 1e-1), "float16": (1e-2, 1e-1)}
STOCK = {"MLXGPT_BLAS": "off", "MLXGPT_KERNELS": "off", "MLX_BFS_MAX_WIDTH": "20"}


class Failed(UserError):
    """A contender cannot run. The message is the contender's own error."""


class Racer:
    """The process of a contender. Calling it runs a method of the contender and returns the result.

    Raises:
        Failed: The contender cannot be built, or its method raised an error, or its process ended.
    """

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
    """Measures the contenders.

    Args:
        case: What they compute.
        names: The contenders, mlxgpt among them. One that cannot run is left out, and a note gives the reason.
        rounds: Turns per contender.
        note: Called with one line for each thing the user should know.

    Returns:
        {"training": {name: facts}, "matmul_gflops": rate, "parts": {part: ms}, "writing": {name: {what: tokens/s}}}

    Raises:
        Disagreement: The losses or the generated tokens of two contenders differ.
        UserError: mlxgpt cannot run.
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
        # Generation is timed in new processes, as users run it: a process that has trained still holds memory.
        writers = [name for name in times if name in (OURS, "PyTorch")]
        with _started(writers, path, case.config.speed, note) as racers:
            return result | {"writing": _writing(racers, case, rounds)}


def _rows(case: Case, name: str) -> int:
    rows = case.config.train.sequences_per_step
    return min(rows, PLAIN_CPU_ROWS) if name == PLAIN and not on_gpu() else rows


@contextlib.contextmanager
def _started(names: Iterable[str], path: Path, speed: SpeedConfig, note) -> Iterator[dict[str, Racer]]:
    """A context with the processes of the contenders that can run. They end with the context."""
    with contextlib.ExitStack() as stack:
        racers = {}
        for name in names:
            try:
                racers[name] = stack.enter_context(contextlib.closing(Racer(name, path, speed)))
            except Failed as failure:
                _leave_out(name, failure, note)
        yield racers


def _leave_out(name: str, failure: Failed, note) -> None:
    """Notes why a contender is left out. Raises UserError for mlxgpt, which the others are compared with."""
    if name == OURS:
        raise UserError(f"bench: {failure}") from None
    note(f"{name} left out: {failure}")


def compare_losses(racers: dict[str, Racer], rows: dict[str, int], dtype: str, note) -> dict[str, list[float]]:
    """Each contender's losses on the same batch, before and after an update.

    Raises Disagreement if they differ from mlxgpt's by more than TOLERANCES.
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
            if not abs(a - b) <= tolerance:
                raise Disagreement(
                    f"bench: {name} has losses {found[name]} on the first batch before and after an update, {OURS} has "
                    f"{ours[rows[name]]}; times of different computations cannot be compared"
                )
    return found


def compare_texts(texts: dict[str, list[int]]) -> None:
    """Raises Disagreement unless the first COMPARED greedy tokens are equal.

    Later ones may differ: rounding can decide between two tokens of equal probability.
    """
    for name, text in texts.items():
        if text[:COMPARED] != texts[OURS][:COMPARED]:
            raise Disagreement(
                f"bench: {name} generates the ids {text[:COMPARED]}, {OURS} generates {texts[OURS][:COMPARED]}; times "
                "of different computations cannot be compared"
            )


def _times(racers, rows, rounds: int, names, note) -> dict[str, list[float]]:
    """Seconds per update, one number per round.

    After the two updates of the loss check, one more update of each contender decides how many updates a turn has.
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
    """Tokens per second of prefill and decoding, by contender and batch: medians of interleaved rounds."""
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
