"""Llama's network in files of other programs: its settings, and the names of its weights.

transformers, mlx-lm and llama.cpp implement Llama's network (arXiv:2302.13971) themselves, so its files contain no
code. The matrices have the shapes and the order of rows that mlxgpt has, except in GGUF files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """The name of one weight in the four naming schemes, without ".weight" and without the prefix of a layer."""

    ours: str
    transformers: str
    gguf: str
    nanochat: str


OUTER = (
    Names("wte", "model.embed_tokens", "token_embd", "tok_embed"),
    Names("final_norm", "model.norm", "output_norm", "norm_final"),
    Names("lm_head", "lm_head", "output", "lm_head"),
)
LAYER = (
    Names("attn_norm", "input_layernorm", "attn_norm", "norm_attn"),
    Names("attn.wq", "self_attn.q_proj", "attn_q", "attention.wq"),
    Names("attn.wk", "self_attn.k_proj", "attn_k", "attention.wk"),
    Names("attn.wv", "self_attn.v_proj", "attn_v", "attention.wv"),
    Names("attn.wo", "self_attn.o_proj", "attn_output", "attention.wo"),
    Names("mlp_norm", "post_attention_layernorm", "ffn_norm", "norm_ffn"),
    Names("mlp.fc_gate", "mlp.gate_proj", "ffn_gate", "ffn.w_gate"),
    Names("mlp.fc1", "mlp.up_proj", "ffn_up", "ffn.w_up"),
    Names("mlp.fc2", "mlp.down_proj", "ffn_down", "ffn.w_down"),
)


def refuses(model: ModelConfig, settings: Mapping[str, Any] = SETTINGS) -> str | None:
    """The reason why a network is not Llama's, such as 'model.qk_norm=true instead of false'. None if it is.

    Args:
        model: The network.
        settings: The settings that it must have.
    """
    if model.ternary_norm:
        return "model.ternary_norm=true instead of false"
    mixers = tuple(dict.fromkeys(model.mixer_of))
    own = {name: getattr(model, name) for name in settings} | {"mixers": mixers}
    others = [f"model.{k}={toml_value(own[k])} instead of {toml_value(v)}" for k, v in settings.items() if own[k] != v]
    return ", ".join(others) or None


def weight_names(model: ModelConfig, scheme: str) -> dict[str, str]:
    """The names of all weights in another naming scheme, by our names.

    Args:
        model: A network that refuses() accepts.
        scheme: "transformers", which mlx-lm uses too, "gguf" or "nanochat".

    Returns:
        For example {"layers.0.attn.wq.weight": "model.layers.0.self_attn.q_proj.weight"} for "transformers".
    """
    prefix = {"transformers": "model.layers.", "gguf": "blk.", "nanochat": "blocks."}[scheme]
    found = {f"{n.ours}.weight": f"{getattr(n, scheme)}.weight" for n in OUTER}
    if model.tied_head:
        del found["lm_head.weight"]
    for i in range(model.n_layer):
        found |= {f"layers.{i}.{n.ours}.weight": f"{prefix}{i}.{getattr(n, scheme)}.weight" for n in LAYER}
    return found
