"""Folders without code: Llama's network, which transformers and mlx-lm implement themselves.

Keys and defaults of config.json are those of transformers' LlamaConfig.
"""

from typing import Any

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.errors import UserError
from mlx_gpt.formats import llama

MODEL_TYPES = ("llama",)
CODE: dict[str, dict[str, str]] = {"huggingface": {}, "mlx-lm": {}}
# Keys of config.json, the settings of the table [model] that they hold, and the values of absent keys. A key without
# such a value must be present.
KEYS = {
    "hidden_size": ("n_embd", None),
    "num_attention_heads": ("n_head", None),
    "num_hidden_layers": ("n_layer", None),
    "intermediate_size": ("ffn_dim", None),
    "max_position_embeddings": ("block_size", 2048),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "tie_word_embeddings": ("tied_head", False),
}
# The only values of other keys with which the network is ours. An absent key has the first value.
FIXED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
}


def refuses(model: ModelConfig) -> str | None:
    """The reason why the network is not Llama's, or None."""
    return llama.refuses(model)


def names_of(model: ModelConfig, vocab_size: int) -> dict[str, str]:
    """The names of the weights in the folder, by our names."""
    return llama.weight_names(model, "transformers")


def facts_of(header: Header, target: str) -> dict[str, Any]:
    """The entries of config.json that describe the network.

    mlx-lm reads `rope_theta` from the top level only, and transformers from `rope_parameters` first.
    """
    model = header.config.model
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **{key: getattr(model, setting) for key, (setting, _) in KEYS.items()},
        "intermediate_size": model.ffn_width,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    }


def model_of(facts: dict[str, Any]) -> ModelConfig:
    """Reads the network from the entries of config.json, also of folders that mlxgpt has not written.

    Raises:
        UserError: An entry is missing or not allowed, or the network differs from ours. The message does not name the
            file.
    """
    for key, allowed in FIXED.items():
        if facts.get(key, allowed[0]) not in allowed:
            raise UserError(f"{key} {str(facts[key])[:60]} is not supported, only {allowed[-1]}")
    settings = {}
    for key, (setting, default) in KEYS.items():
        if facts.get(key, default) is None:
            raise UserError(f"{key!r} is missing")
        settings[setting] = facts.get(key, default)
    model = ModelConfig(
        **settings,
        **llama.SETTINGS,
        n_kv_head=facts.get("num_key_value_heads") or settings["n_head"],
        rope_theta=_rope_theta(facts),
    )
    if facts.get("head_dim") not in (None, model.head_dim):
        raise UserError(
            f"head_dim {facts['head_dim']!r} is not supported, only {model.head_dim}, which is hidden_size / "
            "num_attention_heads"
        )
    return model


def _rope_theta(facts: dict[str, Any]) -> float:
    """Reads the base of the rotary frequencies. Raises UserError if they are scaled in a way that is not supported."""
    bases = [facts["rope_theta"]] if "rope_theta" in facts else []
    for key in ("rope_parameters", "rope_scaling"):
        rope = facts.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{key} {str(rope)[:60]!r} is not a JSON object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UserError(f"rope_type {str(kind)[:60]!r} is not supported, only 'default'")
        bases += [rope["rope_theta"]] if "rope_theta" in rope else []
    if any(base != bases[0] for base in bases):
        raise UserError(f"rope_theta is {str(bases[0])[:60]} in one place and {str(bases[1])[:60]} in another")
    return bases[0] if bases else 10000.0
