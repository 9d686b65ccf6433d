"""Compares mixers at equal tokens: attention, grouped queries, latent attention, gated DeltaNet, and a hybrid.

Each run trains model-s with rotary positions on one million tokens. Everything else stays the same, so the numbers of
parameters differ: 0.80M with attention, 0.74M with grouped queries, 0.76M with latent attention, 0.88M with gated
DeltaNet and 0.86M with the hybrid.
"""

from table import MUON, measure, sets


def mixed(*settings: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` for model-s with rotary positions and these settings."""
    return ["--preset", "model-s", *sets("model.positions=rotary", *settings)]


measure(
    "mixers",
    {
        "attention": mixed(),
        "attention, n_kv_head=2": mixed("model.n_kv_head=2"),
        "mla": mixed('model.mixers=["mla"]'),
        "gated_delta": mixed('model.mixers=["gated_delta"]'),
        "hybrid 3:1": mixed('model.mixers=["gated_delta", "gated_delta", "gated_delta", "attention"]'),
    },
    seeds=[1, 2, 3],
    common=[
        *MUON,
        *("--corpus", "shakespeare", "--batch", "8", "--iters", "488"),
        *("--eval-every", "100000", "--set", "train.save_minutes=0"),
    ],
)
