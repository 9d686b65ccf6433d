"""Folders with code: networks that transformers and mlx-lm do not implement, such as randyGPT's.

The code is a fixed template that contains nothing from the user. It has our names of the weights.
"""

import dataclasses
from collections.abc import Container
from pathlib import Path
from typing import Any

from mlx_gpt.checkpoint.store import Header
from mlx_gpt.config.schema import SHAPE_KEYS, ModelConfig
from mlx_gpt.config.table import toml_value
from mlx_gpt.errors import UserError
from mlx_gpt.model.gpt import shapes_of

MODEL_TYPES = ("mlxgpt", "randygpt")
TEMPLATES = Path(__file__).parent / "templates"
# The code files of each target: the name in the folder, and the name in TEMPLATES.
CODE = {
    "huggingface": {"configuration_mlxgpt.py": "configuration_mlxgpt.py", "modeling_mlxgpt.py": "modeling_mlxgpt.py"},
    "mlx-lm": {"mlxgpt.py": "mlxgpt_mlx_lm.py"},
}
# Keys of config.json besides the shape, and the settings of the table [model] that they hold.
OPTIONS = {
    **{key: key for key in ("positions", "qk_norm", "norm_weights", "final_norm", "tied_head")},
    "mlp": "ffn",
}
# The values that the templates support besides the default, for each setting of the table [model].
COMPUTED: dict[str, Container] = {
    "positions": ("rotary",),
    **{switch: (True,) for switch in ("qk_norm", "norm_weights", "final_norm", "tied_head")},
    "ffn": ("swiglu",),
    "ffn_dim": range(1, 1 << 21),
}


def refuses(model: ModelConfig) -> str | None:
    """The settings of a network that the templates do not support, or None."""
    plain = ModelConfig(**model.shape()).architecture()  # randyGPT's network, the defaults
    others = {k: v for k, v in model.architecture().items() if v != plain[k] and v not in COMPUTED.get(k, ())}
    return ", ".join(f"model.{k}={toml_value(v)}" for k, v in others.items()) or None


def names_of(model: ModelConfig, vocab_size: int) -> dict[str, str]:
    """The names of the weights in the folder, by our names: the same."""
    return {name: name for name in shapes_of(model, vocab_size)}


def facts_of(header: Header, target: str) -> dict[str, Any]:
    """The entries of config.json that describe the network and its code."""
    model = header.config.model
    facts = {
        "model_type": "mlxgpt",
        "architectures": ["MLXGPTForCausalLM"],
        **model.shape(),
        **{key: getattr(model, setting) for key, setting in OPTIONS.items()},
        "mlp_dim": model.ffn_width,
        # With tied_head, the template itself uses wte as the head. There is no lm_head for transformers to tie.
        "tie_word_embeddings": False,
    }
    if target == "mlx-lm":
        return facts | {"model_file": "mlxgpt.py"}
    return facts | {
        "auto_map": {
            "AutoConfig": "configuration_mlxgpt.MLXGPTConfig",
            "AutoModelForCausalLM": "modeling_mlxgpt.MLXGPTForCausalLM",
        }
    }


def model_of(facts: dict[str, Any]) -> ModelConfig:
    """Reads the network from the entries of config.json.

    Raises:
        UserError: An entry is missing or not allowed. The message does not name the file.
    """
    absent = [key for key in SHAPE_KEYS if key not in facts]
    if absent:
        raise UserError(f"{absent[0]!r} is missing")
    options = {setting: facts[key] for key, setting in OPTIONS.items() if key in facts}
    model = ModelConfig(**{k: facts[k] for k in SHAPE_KEYS}, **options)
    width = facts.get("mlp_dim", model.ffn_width)
    if type(width) is not int or width < 1:
        raise UserError(f"mlp_dim {width!r} is not allowed; expected a width, such as {model.ffn_width}")
    return dataclasses.replace(model, ffn_dim=width)
