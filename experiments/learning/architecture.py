"""Compares the options of the network with randyGPT's network, one at a time.

Each run trains model-s on one million tokens. Each network has three seeds.
"""

from table import MUON, measure


def options(**settings: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` that set these options of the network."""
    return [part for key, value in settings.items() for part in ("--set", f"model.{key}={value}")]


# Name of a variant -> how its network differs from randyGPT's.
EACH = {
    "rotary positions": {"positions": "rotary"},
    "QK-norm": {"qk_norm": "true"},
    "final norm": {"final_norm": "true"},
    "tied head": {"tied_head": "true"},
    "learned norm weights": {"norm_weights": "true"},
    "SwiGLU": {"mlp": "swiglu"},
}
measure(
    "architecture",
    {
        "randyGPT": [],
        **{name: options(**settings) for name, settings in EACH.items()},
    },
    seeds=[1, 2, 3],
    common=[
        *MUON,
        *("--preset", "model-s", "--corpus", "shakespeare", "--batch", "8", "--iters", "488"),
        *("--eval-every", "100000", "--set", "train.save_minutes=0"),
    ],
)
