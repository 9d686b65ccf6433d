"""Times two versions of mlxgpt in turns on one machine and prints a Markdown table.

`python experiments/pace.py OLD [NEW]`: OLD and NEW are git revisions, or folders that contain mlx_gpt. The default of
NEW is the working tree of this file. For each preset, the table has:

* the time of an update;
* the rates of prefill and decoding with 1 and 16 sequences;
* the time from the start of `mlxgpt train` to its first update.

The table also has the times of `mlxgpt --help` and `mlxgpt train --help`.

The two sides take turns in every round, and only one side computes at a time. A turn repeats a call for some seconds.
The time of a turn is that of its fastest call, because other load on the machine can only make a call slower. The table
has medians over the rounds. `ratio` is the old time divided by the new time: above 1, NEW is faster. The last column is
the range of the ratio over the rounds.

Both sides compute the same case: the `bench` of OLD makes the weights and the token ids. The text is `shakespeare` if
MLXGPT_CORPUS_DIR contains it, otherwise `pydocs`.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sides import CORPUS, ROOT, Failed, Side, both, last_line

ROWS = (1, 16)  # numbers of sequences for which decoding and prefill are timed
TURN_SECONDS = 2.0  # intended time of a turn: as many calls as fit, at least one
CALL_SECONDS, MAX_STEPS = 0.5, 100  # intended time of a call that trains: as many updates as fit, 1 to MAX_STEPS
MAKE_CASE = """
import json, sys
from pathlib import Path
try:
    from mlx_gpt.bench.record import make_case
except ImportError:  # mlxgpt 0.1.0
    from mlx_gpt.cli.session import bench_case as make_case

preset, settings, path = sys.argv[1:]
make_case(preset, json.loads(settings), lambda line: None, use_tuned=False).save(Path(path))
"""
Timer = Callable[[Side], float]  # returns the seconds of one turn of a side


class Worker:
    """A process with the contender "mlxgpt" of a side's benchmark: `worker("steps", 10)` returns contender.steps(10).

    Raises:
        Failed: The contender reports an error, or the process ended.
    """

    def __init__(self, side: Side, case: Path):
        self.name, self.errors = side.name, tempfile.TemporaryFile("w+", errors="replace")
        self.process = side.start("-m", "mlx_gpt.bench.worker", "mlxgpt", str(case), stderr=self.errors)
        self.answer()

    def __call__(self, method: str, *arguments: int):
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self):
        """Reads one response and returns its result."""
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": last_line(self.errors)}
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def in_turns(what: str, timer: Timer, sides: tuple[Side, Side], rounds: int) -> list[tuple[float, float]]:
    """Returns the seconds of old and new in each round. Each side has a warm-up turn before the first round."""
    print(f"  {what}", file=sys.stderr)
    for side in sides:
        timer(side)
    return [tuple(timer(side) for side in sides) for _ in range(rounds)]


def quickest(call: Callable[[], float]) -> float:
    """Repeats `call` for one turn. Returns the shortest time that a call returned, in seconds."""
    found, until = [], time.perf_counter() + TURN_SECONDS
    while not found or time.perf_counter() < until:
        found.append(call())
    return min(found)


def number(x: float) -> str:
    """Formats a number: as an integer from 100 on, otherwise with three significant digits."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def row(what: str, unit: str, times: list[tuple[float, float]], shown: Callable[[float], float]) -> str:
    """Returns a row of the Markdown table.

    Args:
        what: What was timed.
        unit: The unit of the numbers in the row.
        times: Seconds of old and new in each round.
        shown: Converts seconds to a number in this unit.
    """
    old, new = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    ratios = [a / b for a, b in times]
    cells = [f"{what}, {unit}", number(shown(old)), number(shown(new)), f"{old / new:.3f}"]
    return f"| {' | '.join(cells)} | {min(ratios):.3f}-{max(ratios):.3f} |"


def model_rows(preset: str, batch: int, sides: tuple[Side, Side], rounds: int) -> list[str]:
    """Returns the table rows of a preset for updates, decoding and prefill.

    Each side has one process for all rounds of training and another one for all rounds of generation. The case is
    written by the old side, because the old side may not know settings that the new side would write.
    """
    case = sides[0].home / f"{preset}.npz"
    settings = {"data.corpus": [CORPUS], "train.batch_size": batch, "model.dropout": 0.0}
    sides[0].python("-c", MAKE_CASE, preset, json.dumps(settings), str(case))
    with np.load(case) as file:
        context = json.loads(str(file["settings"]))["config"]["model"]["block_size"]
    written = min(200, context - min(16, context // 2))  # as Case.written of bench/case.py
    rows = []
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(contextlib.closing(Worker(side, case))) for side in sides}
        for worker in workers.values():
            worker("steps", 1)  # compiles
        count = max(1, min(MAX_STEPS, int(CALL_SECONDS / max(worker("steps", 1) for worker in workers.values()))))
        times = in_turns(
            f"{preset}: step", lambda side: quickest(lambda: workers[side]("steps", count) / count), sides, rounds
        )
        rows.append(row(f"{preset}: step of {batch}", "ms", times, lambda s: 1000 * s))
    with contextlib.ExitStack() as stack:  # users do not generate in the process that has trained
        workers = {side: stack.enter_context(contextlib.closing(Worker(side, case))) for side in sides}
        timers = {
            "decode": (written, lambda side, n: quickest(lambda: workers[side]("decode", n)[0])),
            "prefill": (context, lambda side, n: quickest(lambda: workers[side]("prefill", n))),
        }
        for name, n in itertools.product(timers, ROWS):
            tokens, timer = timers[name]
            what = f"{preset}: {name}, {n} row{'s' * (n > 1)}"
            times = in_turns(what, lambda side, n=n, timer=timer: timer(side, n), sides, rounds)
            rows.append(row(what, "tokens/s", times, lambda s, total=n * tokens: total / s))
    return rows


def first_update(side: Side, preset: str) -> float:
    """Returns the seconds from the start of `mlxgpt train` to the report of its first update. Then ends the run."""
    arguments = f"train --json --preset {preset} --corpus {CORPUS} --iters 1 --set train.eval_every=1000".split()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=side.home) as out, tempfile.TemporaryFile("w+") as errors:
        with side.start("-m", "mlx_gpt", *arguments, "--out", out, stderr=errors) as process:
            for line in process.stdout:
                if json.loads(line)["report"] == "step":
                    seconds = time.perf_counter() - start
                    process.kill()
                    return seconds
        raise Failed(f"{side.name} reports no update: {last_line(errors)}")


def help_shown(side: Side, *command: str) -> float:
    """Returns the seconds that `mlxgpt COMMAND --help` takes in a new process."""
    start = time.perf_counter()
    side.run(*command, "--help")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a git revision, or a folder that contains mlx_gpt")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="likewise (default: the working tree)")
    parser.add_argument("--preset", action="append", help="a preset; repeatable (default: model-s and model-l)")
    parser.add_argument("--batch", type=int, default=16, help="sequences per update (default: 16)")
    parser.add_argument("--rounds", type=int, default=7, help="turns per side (default: 7)")
    chosen = parser.parse_args()
    presets = chosen.preset or ["model-s", "model-l"]
    with both(chosen.old, chosen.new) as sides:
        rows = [line for preset in presets for line in model_rows(preset, chosen.batch, sides, chosen.rounds)]
        for preset in presets:
            what = f"{preset}: start of train to first update"
            times = in_turns(what, lambda side, p=preset: first_update(side, p), sides, chosen.rounds)
            rows.append(row(what, "s", times, lambda s: s))
        for command in ((), ("train",)):
            what = " ".join(("mlxgpt", *command, "--help"))
            times = in_turns(what, lambda side, c=command: help_shown(side, *c), sides, chosen.rounds)
            rows.append(row(what, "ms", times, lambda s: 1000 * s))
    print("\n".join(["| what | old | new | ratio | min-max |", "|---|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
