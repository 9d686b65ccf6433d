"""Compares the options of the network with randyGPT's network, one at a time.

Each run trains model-s on one million tokens. Each network has three seeds.
"""

from table import MUON, measure, sets

# Name of a variant -> how its network differs from randyGPT's.
EACH = {
    "rotary positions": "model.positions=rotary",
    "QK-norm": "model.qk_norm=true",
    "final norm": "model.final_norm=true",
    "tied head": "model.tied_head=true",
    "learned norm weights": "model.norm_weights=true",
    "SwiGLU": "model.ffn=swiglu",
}
measure(
    "architecture",
    {
        "randyGPT": [],
        **{name: sets(setting) for name, setting in EACH.items()},
    },
    seeds=[1, 2, 3],
    common=[
        *MUON,
        *("--preset", "model-s", "--corpus", "shakespeare", "--batch", "8", "--iters", "488"),
        *("--eval-every", "100000", "--set", "train.save_minutes=0"),
    ],
)
