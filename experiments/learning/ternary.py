"""Compares ternary networks with the same network in float32, at equal tokens.

Each run trains llama-s with a context of 128 tokens, for 700 steps of 12 sequences. The last variant trains the float
network for half of the steps, at a constant rate, and continues with ternary weights on the same sequences.

    python experiments/learning/ternary.py [tuning] [shakespeare] [stdlib]

The runs of `tuning` choose the settings. They have another seed. Those of `stdlib` train on 1,000 byte pairs of
Python's standard library, for 400 steps.
"""

import sys

from table import MUON, chosen, measure, sets

STEPS, RATE = 700, 3e-3  # RATE is the default learning rate
GROUPS = ["tuning", "shakespeare", "stdlib"]
CHOSEN = chosen(sys.argv[1:], GROUPS)


def measure_if_chosen(group: str, name: str, *arguments, **options) -> None:
    """Measures the table `name` if the group of runs is chosen."""
    if group in CHOSEN:
        measure(name, *arguments, **options)


def steps(count: int, decay_start: float) -> list[str]:
    """Returns the arguments for the number of steps, and the part of them after which the rate decays to 0."""
    return ["--iters", str(count), *sets(f"optimizer.decay_start={decay_start}")]


def ternary(*more: str) -> list[str]:
    """Returns the arguments for ternary layers and further settings."""
    return sets("model.linear=ternary", *more)


NETWORK = ["--preset", "llama-s", *sets("model.block_size=128", "model.dropout=0")]
WHOLE = [*NETWORK, *steps(STEPS, 0.6)]
TWINS = {"float": WHOLE, "ternary": [*WHOLE, *ternary()]}
COMMON = [
    *("--corpus", "shakespeare", "--batch", "12", "--eval-every", "100000"),
    *MUON,
    *sets("optimizer.schedule=wsd", "optimizer.min_learning_rate=0", "train.save_minutes=0"),
]
measure_if_chosen(
    "tuning",
    "ternary_tuning",
    {
        **{
            f"{name}, rate x{factor:g}": [*arguments, *sets(f"optimizer.learning_rate={RATE * factor}")]
            for factor in (1, 0.5, 2)
            for name, arguments in TWINS.items()
        },
        "ternary, norms": [*WHOLE, *ternary("model.ternary_norm=true")],
        "ternary, row": [*WHOLE, *ternary("model.ternary_group=row")],
        "ternary, no decay": [*WHOLE, *ternary("optimizer.weight_decay=0")],
        "ternary, decay x3": [*WHOLE, *ternary("optimizer.weight_decay=0.3")],
        "ternary, long cooldown": [*NETWORK, *steps(STEPS, 0.2), *ternary()],
        "float, then ternary": [*steps(STEPS // 2, 0.2), *ternary()],
        "float, long cooldown": [*NETWORK, *steps(STEPS, 0.2)],
        "float, long cooldown, rate x0.5": [
            *NETWORK,
            *steps(STEPS, 0.2),
            *sets(f"optimizer.learning_rate={RATE * 0.5}"),
        ],
        "ternary, decay from the start": [*NETWORK, *steps(STEPS, 0.03), *ternary()],
    },
    seeds=[0],
    common=COMMON,
    before={"float, then ternary": [*NETWORK, *steps(STEPS // 2, 1.0)]},
)
measure_if_chosen(
    "shakespeare",
    "ternary",
    {
        **TWINS,
        "128": [*WHOLE, *ternary("model.ternary_group=128")],
        "norms": [*WHOLE, *ternary("model.ternary_norm=true")],
        "int8": [*WHOLE, *ternary("model.ternary_activations=int8")],
        # The rate decays in the last 40% of all steps. The network is that of the checkpoint.
        "float, then ternary": [*steps(STEPS // 2, 0.2), *ternary()],
    },
    seeds=[1, 2, 3],
    common=COMMON,
    before={"float, then ternary": [*NETWORK, *steps(STEPS // 2, 1.0)]},
)
PAIRS = ["--bpe", "1000", *NETWORK]
STDLIB = [*PAIRS, *steps(400, 0.2)]
measure_if_chosen(
    "stdlib",
    "ternary_stdlib",
    {
        "float": STDLIB,
        "ternary": [*STDLIB, *ternary()],
        "norms": [*STDLIB, *ternary("model.ternary_norm=true")],
        "int8": [*STDLIB, *ternary("model.ternary_activations=int8")],
        "128": [*STDLIB, *ternary("model.ternary_group=128")],
        # The rate decays in the second half of all steps.
        "float, then ternary": [*steps(200, 0.03), *ternary()],
    },
    seeds=[1, 2, 3],
    common=["--corpus", "stdlib", *COMMON[2:]],
    before={"float, then ternary": [*PAIRS, *steps(200, 1.0)]},
)
