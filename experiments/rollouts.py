"""Measures reinforcement learning: the speed of the draws, beside the scheduler alone, and where the time goes.

    python experiments/rollouts.py CHECKPOINT [--updates 7] [--max-tokens 128]

Each round makes one update of `mlxgpt rl` with the default batch, 8 texts after each of 8 prompts, and then writes 64
texts after the same prompts with the same scheduler, 16 at a time, without rewards and updates. The result has medians
over the rounds. Tokens are those that were drawn. The first round compiles and is not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import mlx_gpt
from mlx_gpt.code.languages import language_of
from mlx_gpt.generation.job import Job
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextWriter
from mlx_gpt.generation.together import Together
from mlx_gpt.train.reports import StepReport


class Alone:
    """The scheduler without training, with the weights of the checkpoint."""

    def __init__(self, checkpoint: Path, max_tokens: int):
        self.run, self.max_tokens = mlx_gpt.load(checkpoint), max_tokens
        self.together = Together(self.run.model, 16, 64)

    def tokens_per_second(self, prompts: list[str]) -> float:
        """Writes a text after each prompt, and returns the tokens that were drawn per second."""
        start, tokenizer = time.perf_counter(), self.run.tokenizer
        jobs = [
            Job(
                prompt=tokenizer.encode(prompt).tolist(),
                sampling=Sampling(temperature=1.0, top_p=1.0),
                seed=i,
                max_tokens=self.max_tokens,
                writer=TextWriter(tokenizer, language_of("python").stops),
            )
            for i, prompt in enumerate(prompts)
        ]
        self.together.write(jobs)
        return sum(len(job.drawn) for job in jobs) / (time.perf_counter() - start)


def prompts_of(folder: Path) -> list[str]:
    """The prompts of the last batch of a run, one for each text."""
    lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    return [line["prompt"] for line in lines if line["batch"] == lines[-1]["batch"]]


def measured(checkpoint: Path, updates: int, max_tokens: int) -> dict:
    """Makes one update more than `updates`, and returns the medians of all but the first."""
    rows, alone = [], Alone(checkpoint, max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"train.iters": updates + 1, "rl.max_tokens": max_tokens}
        session = mlx_gpt.rl(checkpoint, settings=settings, out=Path(folder) / "run")
        start = time.perf_counter()
        for report in session:
            if not isinstance(report, StepReport):
                start = time.perf_counter()
                continue
            found, seconds = report.metrics, time.perf_counter() - start
            prompts = prompts_of(Path(folder) / "run")
            speed = found["length"] * len(prompts) / found["seconds.drawing"]
            drawing, scoring = found["seconds.drawing"] / seconds, found["seconds.scoring"] / seconds
            row = {"rollouts": speed, "alone": alone.tokens_per_second(prompts), "seconds": seconds}
            rows.append(row | {"drawing": drawing, "scoring": scoring, "updating": 1 - drawing - scoring})
            start = time.perf_counter()
    ratio = statistics.median(row["rollouts"] / row["alone"] for row in rows[1:])
    return {name: round(statistics.median(row[name] for row in rows[1:]), 3) for name in rows[0]} | {"ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a model of Python code")
    parser.add_argument("--updates", type=int, default=7, help="rounds (default: 7)")
    parser.add_argument("--max-tokens", type=int, default=128, help="most tokens of a text (default: 128)")
    chosen = parser.parse_args()
    print(json.dumps(measured(chosen.checkpoint, chosen.updates, chosen.max_tokens), indent=2))


if __name__ == "__main__":
    main()
