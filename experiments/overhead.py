"""Measures how much longer an update takes in the trainer than its compiled step takes alone.

    python experiments/overhead.py [PRESET] [ROUNDS]

The update in the trainer includes the choice of its windows, the report, the display and the metrics file. Both kinds
of update run in turns. The script prints the medians of their times, and the median and quartiles of the ratio over the
rounds.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from mlx_gpt.device.mlx import mx, peak_memory
from mlx_gpt.run.build import make_trainer
from mlx_gpt.run.request import Request
from mlx_gpt.run.start import begin
from mlx_gpt.train.reports import StepReport
from mlx_gpt.watch.console import RunConsole, Terminal
from mlx_gpt.watch.metrics import MetricsFile

STEPS = 5  # updates of each kind in a round


def main(preset: str = "model-s", rounds: int = 20) -> None:
    overrides = {"train.eval_every": 10**6, "train.iters": 10**6, "train.log_every": 1}
    request = Request(preset=preset, settings=overrides)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(begin(request, print), Path(folder), print)
        train, config = trainer.config.train, trainer.config
        console = RunConsole(
            Terminal(file=open(Path(folder, "screen"), "w"), force_terminal=True),
            iters=train.iters,
            tokens_per_step=train.sequences_per_step * config.model.block_size,
            log_every=train.log_every,
            patience=train.patience,
            peak_memory=peak_memory,
        )
        metrics = MetricsFile(Path(folder, "metrics.jsonl"), 0, print)
        reports, state, position = trainer.run(), trainer.state, trainer.source.position
        arrays = [mx.array(a) for a in trainer.source.next(0, state["weights"])]
        trainer.source.seek(position)

        def trained() -> None:
            """Makes one update in the trainer."""
            report = next(reports)
            assert isinstance(report, StepReport)
            metrics.add(report)
            console.show(report)

        def bare(index: int) -> None:
            """Makes one update with the compiled step alone, always on the same batch."""
            nonlocal state
            state, output = trainer._step(state, mx.array(1e-3), mx.array(index, dtype=mx.uint32), *arrays)
            mx.eval(state, output)

        trained(), bare(0)  # compiles
        ratios, times = [], []
        for turn in range(rounds):
            seconds = []
            for run in (lambda i: trained(), bare):
                start = time.perf_counter()
                for i in range(STEPS):
                    run(turn * STEPS + i)
                seconds.append((time.perf_counter() - start) / STEPS)
            ratios.append(seconds[0] / seconds[1])
            times.append(seconds)
        console.close()
        metrics.close()
    inside, alone = (1000 * statistics.median(t) for t in zip(*times, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{preset}: in the trainer {inside:.1f} ms, bare {alone:.1f} ms; ratio {middle:.3f} ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
