"""Compares each option beyond randyGPT's network at equal tokens: model-s, one million tokens, three seeds."""

from table import measure


def options(**settings: str) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"model.{key}={value}")]


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
        *("--preset", "model-s", "--corpus", "shakespeare", "--batch", "8", "--iters", "488"),
        *("--eval-every", "100000", "--set", "train.save_minutes=0"),
    ],
)
