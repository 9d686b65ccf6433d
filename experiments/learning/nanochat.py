"""Compares parts of nanochat-rs-ternary at equal tokens: experts, mixed residual streams, and Lion beside Muon.

Each run trains model-s with rotary positions and SwiGLU on one million tokens. The experts have half of the width of
the dense network, and two of the eight compute a token, so both have the same number of active parameters, except for
the router. Lion has a tenth of AdamW's rate. The rate of the matrices is the same.
"""

from table import MUON, measure, sets

DENSE = ("model.ffn=swiglu", "model.ffn_dim=384")
EXPERTS = ("model.ffn=moe", "model.ffn_dim=192", "model.n_expert=8", "model.n_expert_per_token=2")
LION = (
    "optimizer.name=muon-lion",
    "optimizer.learning_rate=3e-4",
    "optimizer.muon_lr_scale=66.67",
    "optimizer.newton_schulz=jordan",
)


def network(*settings: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` for model-s with rotary positions and these settings."""
    return ["--preset", "model-s", *sets("model.positions=rotary", *settings)]


measure(
    "nanochat",
    {
        "dense, one stream, muon": [*network(*DENSE), *MUON],
        "8 experts, top 2": [*network(*EXPERTS), *MUON],
        "2 streams": [*network(*DENSE, "model.residual=mhc"), *MUON],
        "4 streams": [*network(*DENSE, "model.residual=mhc", "model.n_stream=4"), *MUON],
        "muon-lion": network(*DENSE, *LION),
    },
    seeds=[1, 2, 3],
    common=[
        *("--corpus", "shakespeare", "--batch", "8", "--iters", "488"),
        *("--eval-every", "100000", "--set", "train.save_minutes=0"),
    ],
)
