"""Compares networks of Llama's shape with randyGPT's network with rotary positions, at equal tokens.

The rows of model-s add the options of Llama's network one after the other, and train on one million tokens. The larger
networks train on half a million tokens.
"""

from table import MUON, measure, sets, settings


def common(iters: int) -> list[str]:
    """Returns the arguments of `mlxgpt train` that all runs of a table share."""
    length = ["--batch", "8", "--iters", str(iters), "--eval-every", "100000"]
    return ["--corpus", "shakespeare", *length, "--set", "train.save_minutes=0", *MUON]


def added(*settings: str) -> list[str]:
    """Returns the arguments of `mlxgpt train` for model-s with rotary positions and these settings."""
    return ["--preset", "model-s", *sets("model.positions=rotary", *settings)]


NORMS = ("model.norm_weights=true", "model.final_norm=true")
SWIGLU = (*NORMS, "model.ffn=swiglu")
TIED = (*SWIGLU, "model.tied_head=true")
MODEL_L = {"model.dropout": 0.2, "optimizer.decay_start": 0.37, "optimizer.ema_decay": 0.995}  # of its preset
PRESETS = {name: ["--preset", name, *settings(MODEL_L)] for name in ("model-l-modern", "llama-m")}
BYTE_PAIRS = {f"{name}, byte pairs": [*arguments, "--bpe", "2000"] for name, arguments in PRESETS.items()}

measure("llama_presets", PRESETS | BYTE_PAIRS, seeds=[1, 2, 3], common=common(244))
measure(
    "llama",
    {
        "rotary": added(),
        "+ norm weights, final norm": added(*NORMS),
        "+ SwiGLU": added(*SWIGLU),
        "+ tied head": added(*TIED),
        "+ n_kv_head=2": added(*TIED, "model.n_kv_head=2"),
        "+ n_kv_head=1": added(*TIED, "model.n_kv_head=1"),
    },
    seeds=[1, 2, 3],
    common=common(488),
)
