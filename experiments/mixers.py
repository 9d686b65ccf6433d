"""Measures networks with different mixers in turns: a training step, a decoding step, and the decoding state.

    python experiments/mixers.py [--context 256] [--rounds 7]

The networks have the shape of model-s and rotary positions. For each context, the table has medians over the rounds.
Every round measures each network once, so that other load on the machine falls on all of them. A training step is an
update on --batch sequences of a full context. A decoding step is one greedy token of one sequence, near the end of a
full context. The state is that of one sequence at a full context, computed from the settings.
"""

import argparse
import statistics
import sys
import time

import numpy as np

from mlx_gpt.bench.ours import Contender
from mlx_gpt.bench.record import make_case
from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.model.cost import num_params, state_bytes
from mlx_gpt.model.gpt import GPT

HYBRID = ("gated_delta", "gated_delta", "gated_delta", "attention")
# Name of a network -> its settings of [model].
NETWORKS = {
    "attention": {},
    "attention, n_kv_head=2": {"n_kv_head": 2},
    "mla": {"mixers": ("mla",)},
    "gated_delta": {"mixers": ("gated_delta",)},
    "hybrid 3:1": {"mixers": HYBRID},
}
TOKENS = 16  # decoding steps that are timed together


class Subject:
    """One network at one context. Creating it compiles its functions."""

    def __init__(self, name: str, context: int, batch: int):
        settings = {"positions": "rotary", "block_size": context, "dropout": 0.0} | NETWORKS[name]
        overrides = {f"model.{k}": v for k, v in settings.items()} | {"train.batch_size": batch}
        case = make_case("model-s", overrides, lambda line: print(line, file=sys.stderr), use_tuned=False)
        self.name, self.context, self.contender = name, context, Contender(case)
        self.parameters = num_params(case.config.model, case.vocab_size)
        self.state = state_bytes(case.config.model, 1)
        self.decoder = Decoder(
            GPT(case.config.model, case.vocab_size), lambda logits, index: mx.argmax(logits, axis=-1)
        )
        self.prompt = np.array(case.ids[None, : context - TOKENS - 1], np.int32)
        self.training_step(), self.decoding_step()

    def training_step(self) -> float:
        """Returns the seconds of an update."""
        return self.contender.steps(1)

    def decoding_step(self) -> float:
        """Returns the seconds of a token, a mean over TOKENS tokens."""
        ids, states = self.decoder.read(self.prompt, mx.array(0))
        # The first step is not timed: the state may grow to the full context.
        for index in range(TOKENS + 1):
            ids, states = self.decoder.step(ids, mx.array(index), states, self.prompt.shape[1] + index + 1)
            mx.eval(ids, states.parts)
            if index == 0:
                start = time.perf_counter()
        return (time.perf_counter() - start) / TOKENS


def table(context: int, batch: int, rounds: int) -> list[str]:
    """Measures all networks at one context. Returns the rows of the Markdown table."""
    subjects = [Subject(name, context, batch) for name in NETWORKS]
    found = {subject.name: ([], []) for subject in subjects}
    for i in range(rounds):
        print(f"context {context}, round {i + 1} of {rounds}", file=sys.stderr)
        for subject in subjects:
            training, decoding = found[subject.name]
            training.append(1000 * subject.training_step())
            decoding.append(1000 * subject.decoding_step())
    rows = []
    for subject in subjects:
        training, decoding = map(statistics.median, found[subject.name])
        times = f"{training:,.0f} | {decoding:.2f}"
        rows.append(f"| {context} | {subject.name} | {subject.parameters:,} | {times} | {subject.state:,} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, action="append", help="repeatable (default: 256, 1024 and 4096)")
    parser.add_argument("--batch", type=int, default=2, help="sequences per update (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each network (default: 7)")
    chosen = parser.parse_args()
    print("| context | mixer | parameters | training step, ms | decoding step, ms | state, bytes |")
    print("|---|---|---|---|---|---|")
    for context in chosen.context or (256, 1024, 4096):
        print("\n".join(table(context, chosen.batch, chosen.rounds)), flush=True)


if __name__ == "__main__":
    main()
