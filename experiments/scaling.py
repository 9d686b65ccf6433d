"""Measures how the time of an update falls with a second process, and what the communication takes.

    python experiments/scaling.py RESULT.json [--preset model-l] [--batch 16] [--rounds 3]

Every process runs on one core of its own, with one lane. In each round these run one after the other:

* one process with the whole batch;
* one process with half of the batch;
* two processes with half of the batch each, which do not communicate;
* two ranks with the whole batch, which sum the gradients of each update over the loopback address;
* two ranks with local steps (train.sync_every = 10).

The result has the seconds of an update, medians over the rounds of medians over the updates (of means, with local
steps). The difference of the fourth and the third row is the time that an update spends in communication. Then two
ranks sum arrays of several sizes, and orthogonalize the matrices of the network. Linux only.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopback import outputs

UPDATES, FIRST, EVERY = 8, 2, 10  # updates of a process, those that are not counted, and train.sync_every
SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 25)  # bytes
CASES = {  # processes, whether each has the whole batch, whether they are a group, train.sync_every
    "one process": (1, True, False, 0),
    "one process, half of the batch": (1, False, False, 0),
    "two processes, half of the batch each": (2, False, False, 0),
    "two ranks": (2, True, True, 0),
    "two ranks, local steps": (2, True, True, EVERY),
}


def use_one_core() -> None:
    """Confines this process to the core with the number of its rank."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["MLX_RANK"])]})


def train(preset: str, batch: int, every: int) -> None:
    """Trains as one process of a case, and prints the seconds of each update that counts."""
    import mlx_gpt
    from mlx_gpt.train.reports import StepReport

    settings = {
        "train.iters": 2 * every or UPDATES,
        "train.batch_size": batch,
        "train.eval_every": 100 * (every or 1),
        "train.sample_every": 0,
        "train.save_minutes": 0,
        "train.sync_every": every,
        "speed.lanes": 1,
    }
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for report in mlx_gpt.train(preset, "shakespeare", settings=settings, out=Path(folder) / "run"):
            if isinstance(report, StepReport):
                times.append(time.perf_counter())
    seconds = [after - before for before, after in zip(times, times[1:], strict=False)]
    print(json.dumps([statistics.mean(seconds[-every:])] if every else seconds[FIRST:]), flush=True)


def median_seconds(compute: Callable[[], Any]) -> float:
    """Median time of 15 computations, after five that do not count."""
    from mlx_gpt.device.mlx import mx

    times = []
    for _ in range(20):
        start = time.perf_counter()
        mx.eval(compute())
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def parts(preset: str) -> None:
    """Prints the seconds of a sum over the ranks for each of SIZES, and of the orthogonalization of Muon."""
    from mlx_gpt.config.presets import resolve
    from mlx_gpt.device.mlx import mx
    from mlx_gpt.distributed.ranks import join
    from mlx_gpt.model.gpt import GPT
    from mlx_gpt.optim.optimizers import NEWTON_SCHULZ, orthogonal

    group, found = join(), []
    for size in SIZES:
        array = mx.ones(size // 4)
        found.append(median_seconds(functools.partial(group.sum, [array])))
    group.leave(True)
    specs = GPT.specs(resolve(preset).model, 67)
    matrices = {name: mx.random.normal(w.shape) for name, w in specs.items() if w.role == "matrix"}
    mx.eval(matrices)
    print(json.dumps([*found, median_seconds(lambda: orthogonal(matrices, NEWTON_SCHULZ["polar"]))]), flush=True)


def seconds(case: str, preset: str, batch: int) -> float:
    """Runs a case. Returns the seconds of an update: of the slowest process, if there are several."""
    processes, is_whole, is_group, every = CASES[case]
    own = batch if is_whole else batch // 2
    printed = outputs([sys.executable, __file__, "--train", preset, str(own), str(every)], processes, is_group)
    return max(statistics.median(json.loads(text.splitlines()[-1])) for text in printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--preset", default="model-l")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    chosen = parser.parse_args()
    rounds: dict[str, list[float]] = {case: [] for case in chosen.cases}
    for _ in range(chosen.rounds):
        for case, found in rounds.items():
            found.append(round(seconds(case, chosen.preset, chosen.batch), 4))
            print(case, found[-1], flush=True)
    *sums, muon = map(max, *map(json.loads, outputs([sys.executable, __file__, "--parts", chosen.preset], 2)))
    result = {
        "preset": chosen.preset,
        "batch": chosen.batch,
        "seconds": {case: statistics.median(found) for case, found in rounds.items()},
        "rounds": rounds,
        "sums": [{"bytes": size, "seconds": t} for size, t in zip(SIZES, sums, strict=True)],
        "orthogonal": muon,
    }
    chosen.result.write_text(json.dumps(result, indent=2) + "\n")
    print(chosen.result.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        use_one_core()
        train(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--parts"]:
        use_one_core()
        parts(sys.argv[2])
    else:
        main()
