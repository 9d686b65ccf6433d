"""Computes how training scales with the number of machines, and compares the model with measurements.

    python experiments/scaling_model.py RESULT.json ... [--picture FILE.png] [--tflops 3] [--latency 100e-6]

RESULT.json is what experiments/scaling.py writes; several are of one preset with different batches. The first table
compares the model with them. The second one, and the picture, are computed for machines that nobody measured: how many
times the tokens per second of one machine N machines train, if each of them computes ROWS of its own in each update.

The model: a machine computes a sequence in r seconds. The orthogonalization of Muon takes m seconds, which the ranks
divide, and the rest of an update c seconds, which each of them spends. A sum over N ranks in a ring sends 2 (N - 1) / N
times its bytes, in 2 (N - 1) messages one after the other. An update sums the gradients and the results of Muon; with
H local steps, the weights are summed once in H updates, and each rank orthogonalizes all matrices.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from mlx_gpt.config.presets import resolve
from mlx_gpt.model.cost import flops_per_token, num_params
from mlx_gpt.model.gpt import GPT

MODELS = {"model-l": 67, "llama-125m": 32000, "nano-1b": 50257}  # presets, and numbers of token ids
TOKENS = 8192  # tokens of an update on each machine
MACHINES = (2, 4, 8, 16, 32, 64)
GIGABITS = (1, 10, 40)
EVERY = (0, 50)  # train.sync_every


@dataclasses.dataclass
class Work:
    """An update on one machine.

    Attributes:
        rows: Seconds for the sequences of the machine.
        muon: Seconds to orthogonalize all matrices.
        rest: Seconds for everything else.
        weights, matrices: Bytes of all weights, and of those that Muon updates.
    """

    rows: float
    muon: float
    rest: float
    weights: float
    matrices: float

    def seconds(self, machines: int, network: "Network", every: int = 0) -> float:
        """Seconds of an update of a group, where each machine computes its own rows."""
        if every and machines > 1:
            return self.rows + self.muon + self.rest + network.sum(self.weights, machines) / every
        exchange = network.sum(self.weights, machines) + network.sum(self.matrices, machines)
        return self.rows + self.muon / machines + self.rest + exchange


@dataclasses.dataclass
class Network:
    """A ring of connections.

    Attributes:
        rate: Bytes per second.
        latency: Seconds of a message.
    """

    rate: float
    latency: float

    def sum(self, size: float, machines: int) -> float:
        """Seconds of a sum of `size` bytes over all machines."""
        return 2 * (machines - 1) * (self.latency + size / machines / self.rate)


def muon_flops(shapes: list[tuple[int, ...]]) -> float:
    """Operations of five Newton-Schulz steps for matrices of these shapes. Leading dimensions count matrices."""
    total = 0
    for *lead, rows, columns in shapes:
        m, n = min(rows, columns), max(rows, columns)
        total += int(np.prod(lead)) * 5 * (4 * m * m * n + 2 * m**3)
    return total


def of_preset(preset: str, vocab_size: int, flops: float) -> Work:
    """The work of a machine that computes `flops` operations per second on TOKENS tokens."""
    model = resolve(preset).model
    shapes = [w.shape for w in GPT.specs(model, vocab_size).values() if w.role in ("matrix", "matrices")]
    return Work(
        rows=TOKENS * flops_per_token(model, vocab_size) / flops,
        muon=muon_flops(shapes) / flops,
        rest=0.0,
        weights=4 * num_params(model, vocab_size),
        matrices=4 * sum(int(np.prod(shape)) for shape in shapes),
    )


def compared(results: list[dict]) -> list[list]:
    """Rows of (case, batch, measured, computed seconds). r and c are fitted to the measured single processes."""
    alone = [(r["batch"], s) for r in results for case, s in r["seconds"].items() if case == "one process"]
    alone += [(r["batch"] / 2, r["seconds"]["one process, half of the batch"]) for r in results[:1]]
    row, fixed = np.polyfit(*np.transpose(alone), 1)
    muon = results[0]["orthogonal"]
    sizes, times = np.transpose([(s["bytes"], s["seconds"]) for s in results[0]["sums"] if s["bytes"] >= 1 << 20])
    rate, latency = np.polyfit(sizes, times, 1)  # of two ranks: seconds = 2 latency + bytes / rate
    network = Network(1 / rate, latency / 2)
    sized = of_preset(results[0]["preset"], 67, 1.0)
    found = []
    for result in results:
        for case, measured in result["seconds"].items():
            rows = result["batch"] / (1 if case == "one process" else 2)
            work = Work(rows * row, muon, fixed - muon, sized.weights, sized.matrices)
            machines = 2 if case.startswith("two ranks") else 1
            every = 10 if "local" in case else 0
            found.append([case, result["batch"], measured, work.seconds(machines, network, every)])
    return found


def speedups(flops: float, latency: float) -> dict:
    """{(preset, gigabits, every): the speedup for each number of MACHINES}."""
    found = {}
    for preset, vocab_size in MODELS.items():
        work = of_preset(preset, vocab_size, flops)
        for gigabits in GIGABITS:
            network = Network(gigabits * 1e9 / 8, latency)
            for every in EVERY:
                one = work.seconds(1, network)
                found[preset, gigabits, every] = [n * one / work.seconds(n, network, every) for n in MACHINES]
    return found


def draw(found: dict, path: Path) -> None:
    """Draws the speedups: a panel for each network, a color for each connection, dashed with local steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(MODELS), figsize=(10, 3.6), sharey=True)
    for axis, preset in zip(axes, MODELS, strict=True):
        axis.plot(MACHINES, MACHINES, color="0.8", linewidth=1)
        for gigabits, color in zip(GIGABITS, ("#d55e00", "#0072b2", "#009e73"), strict=True):
            for every, style in zip(EVERY, ("-", "--"), strict=True):
                label = f"{gigabits} Gb/s" + (f", every {every} updates" if every else "")
                axis.plot(MACHINES, found[preset, gigabits, every], style, color=color, marker=".", label=label)
        axis.set(title=preset, xlabel="machines", xscale="log", yscale="log", xticks=MACHINES, yticks=(1, *MACHINES))
        axis.minorticks_off()
        axis.set_xticklabels(MACHINES)
        axis.set_yticklabels((1, *MACHINES))
        axis.set_ylim(0.4, 110)
    axes[0].set_ylabel("times one machine (computed)")
    axes[-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--tflops", type=float, default=3.0, help="operations per second of a machine (assumed)")
    parser.add_argument("--latency", type=float, default=100e-6, help="seconds of a message (assumed)")
    chosen = parser.parse_args()
    print("| case | sequences | measured s | computed s | difference |\n|---|---|---|---|---|")
    for case, batch, measured, computed in compared([json.loads(path.read_text()) for path in chosen.results]):
        print(f"| {case} | {batch} | {measured:.3f} | {computed:.3f} | {computed / measured - 1:+.1%} |")
    found = speedups(chosen.tflops * 1e12, chosen.latency)
    print(f"\n| preset | Gb/s | exchange | {' | '.join(map(str, MACHINES))} |")
    print("|---" * (3 + len(MACHINES)) + "|")
    for (preset, gigabits, every), values in found.items():
        cells = " | ".join(f"{value:.1f}" for value in values)
        print(f"| {preset} | {gigabits} | {f'every {every} updates' if every else 'each update'} | {cells} |")
    if chosen.picture:
        draw(found, chosen.picture)


if __name__ == "__main__":
    main()
