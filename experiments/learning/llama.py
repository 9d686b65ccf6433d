"""Compares networks of Llama's shape with randyGPT's network with rotary positions, at equal tokens.

The rows of model-s add the options of Llama's network one after the other. Each run trains on one million tokens.
"""

from table import measure

COMMON = ["--corpus", "shakespeare", "--batch", "8", "--iters", "488", "--eval-every", "100000"]
COMMON += ["--set", "train.save_minutes=0"]


def added(*settings: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` for model-s with rotary positions and these settings of the network."""
    return ["--preset", "model-s", *(part for s in ("positions=rotary", *settings) for part in ("--set", f"model.{s}"))]


NORMS = ("norm_weights=true", "final_norm=true")
SWIGLU = (*NORMS, "ffn=swiglu")
TIED = (*SWIGLU, "tied_head=true")
NETWORKS = {"model-l-modern": ["--preset", "model-l-modern"], "llama-m": ["--preset", "llama-m"]}
measure(
    "llama",
    {
        "rotary": added(),
        "+ norm weights, final norm": added(*NORMS),
        "+ SwiGLU": added(*SWIGLU),
        "+ tied head": added(*TIED),
        "+ n_kv_head=2": added(*TIED, "n_kv_head=2"),
        "+ n_kv_head=1": added(*TIED, "n_kv_head=1"),
        **NETWORKS,
        **{f"{name}, byte pairs": [*arguments, "--bpe", "2000"] for name, arguments in NETWORKS.items()},
    },
    seeds=[1, 2, 3],
    common=COMMON,
)
