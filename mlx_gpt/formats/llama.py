"""Llama's network in files of transformers, mlx-lm and llama.cpp: its settings, and the names of its weights.

These programs implement Llama's network (arXiv:2302.13971) themselves, so its files contain no code. The matrices have
the shapes and the order of rows that mlxgpt has, except in GGUF files.
"""

from dataclasses import dataclass

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.config.table import toml_value

# The settings of the table [model] that every Llama network has. All other settings may vary.
SETTINGS = {
    "positions": "rotary",
    "qk_norm": False,
    "norm_weights": True,
    "final_norm": True,
    "mixers": ("attention",),
    "ffn": "swiglu",
    "linear": "dense",
    "ternary_norm": False,
    "residual": "add",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The name of one weight in the three naming schemes, without ".weight" and without the prefix of a layer."""

    ours: str
    transformers: str
    gguf: str


OUTER = (
    Names("wte", "model.embed_tokens", "token_embd"),
    Names("final_norm", "model.norm", "output_norm"),
    Names("lm_head", "lm_head", "output"),
)
LAYER = (
    Names("attn_norm", "input_layernorm", "attn_norm"),
    Names("attn.wq", "self_attn.q_proj", "attn_q"),
    Names("attn.wk", "self_attn.k_proj", "attn_k"),
    Names("attn.wv", "self_attn.v_proj", "attn_v"),
    Names("attn.wo", "self_attn.o_proj", "attn_output"),
    Names("mlp_norm", "post_attention_layernorm", "ffn_norm"),
    Names("mlp.fc_gate", "mlp.gate_proj", "ffn_gate"),
    Names("mlp.fc1", "mlp.up_proj", "ffn_up"),
    Names("mlp.fc2", "mlp.down_proj", "ffn_down"),
)


def refuses(model: ModelConfig) -> str | None:
    """The reason why a network is not Llama's, such as 'model.qk_norm=true instead of false'. None if it is."""
    mixers = tuple(dict.fromkeys(model.mixer_of))
    own = {name: getattr(model, name) for name in SETTINGS} | {"mixers": mixers}
    others = [f"model.{k}={toml_value(own[k])} instead of {toml_value(v)}" for k, v in SETTINGS.items() if own[k] != v]
    return ", ".join(others) or None


def weight_names(model: ModelConfig, scheme: str) -> dict[str, str]:
    """The names of all weights in another naming scheme, by our names.

    Args:
        model: A network that refuses() accepts.
        scheme: "transformers", which mlx-lm uses too, or "gguf".

    Returns:
        For example {"layers.0.attn.wq.weight": "model.layers.0.self_attn.q_proj.weight"} for "transformers".
    """
    prefix = {"transformers": "model.layers.", "gguf": "blk."}[scheme]
    found = {f"{n.ours}.weight": f"{getattr(n, scheme)}.weight" for n in OUTER}
    if model.tied_head:
        del found["lm_head.weight"]
    for i in range(model.n_layer):
        found |= {f"layers.{i}.{n.ours}.weight": f"{prefix}{i}.{getattr(n, scheme)}.weight" for n in LAYER}
    return found
