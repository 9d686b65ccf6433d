"""Ternary matrices in 2 bits a weight, in the forms that mlx-lm and transformers read without code.

The matrices of the blocks are stored as trits and float32 scales, and all other weights in float32. The code of a trit
t is t + 1.
"""

from collections.abc import Callable

import numpy as np

from mlx_gpt.checkpoint.store import Tensors
from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.formats import llama
from mlx_gpt.model.packing import as_dense, trits_of
from mlx_gpt.model.ternary import two_bit, two_bit_group

Packed = tuple[Tensors, dict, str]


def packed(model: ModelConfig, weights: Tensors, target: str) -> Packed:
    """Converts the weights of a ternary network to the packed form of a program.

    Args:
        model: The network.
        weights: Its weights by name, float32 or packed.
        target: "mlx-lm" or "huggingface".

    Returns:
        The weights by our names; a packed "x.weight" has other parts beside it, such as "x.scales". The entries of
        config.json that describe the form. A sentence about it for the model card.

    Raises:
        UserError: The network has no ternary matrices, or is not Llama's, or the form cannot hold its groups or widths.
    """
    if model.linear == "dense":
        raise UserError("--packed is for ternary networks, but this one has model.linear=dense; leave out --packed")
    if others := llama.refuses(as_dense(model, {})[0]):
        raise UserError(f"--packed is for Llama's network, not {others}; keep the safetensors file")
    matrices = {name: (trits, scales) for name, trits, scales in trits_of(model, weights)}
    others = {name: w for name, w in weights.items() if not name.endswith((".codes", ".scales"))}
    parts, facts, note = FORMS[target](model, matrices)
    return {name: w for name, w in others.items() if name not in matrices} | parts, facts, note


def _for_mlx_lm(model: ModelConfig, matrices: dict[str, tuple[mx.array, mx.array]]) -> Packed:
    """The form of MLX's quantized layers, see two_bit(). All matrices have one group size."""
    size = min(two_bit_group(trits.shape[1], scales.shape[1]) for trits, scales in matrices.values())
    if not size:
        raise UserError(
            f"--packed needs widths that are multiples of 32, but model.n_embd={model.n_embd} and "
            f"model.ffn_dim={model.ffn_width}; export without --packed"
        )
    parts = {}
    for name, (trits, scales) in matrices.items():
        stem = name.removesuffix("weight")
        named = zip(("weight", "scales", "biases"), two_bit(trits, scales, size), strict=True)
        parts |= {stem + part: np.array(array) for part, array in named}
    note = (
        f"ternary matrices in 2 bits per weight, with float32 scales in groups of {size}: the weights of the forward "
        "pass, exactly"
    )
    return parts, {"quantization": {"group_size": size, "bits": 2}}, note


def _for_transformers(model: ModelConfig, matrices: dict[str, tuple[mx.array, mx.array]]) -> Packed:
    """The form of transformers' BitNet quantization.

    Byte (r, c) of an array (R / 4, C) uint8 has the codes of the rows r, r + R / 4, r + R / 2 and r + 3 R / 4, the
    first one in the lowest bits. `weight_scale` is the inverse of the scale, (1,) float32.
    """
    if model.ternary_group != "tensor":
        raise UserError(
            "transformers' packed form has one scale for a matrix, but this network has "
            f"model.ternary_group={model.ternary_group}; export without --packed"
        )
    parts = {}
    for name, (trits, scales) in matrices.items():
        if trits.shape[0] % 4:
            raise UserError(
                f"transformers' packed form needs rows that are a multiple of 4, but {name} has {trits.shape[0]}; "
                "export without --packed"
            )
        quarters = (np.array(trits) + 1).astype(np.uint8).reshape(4, -1, trits.shape[1])
        parts[name] = np.bitwise_or.reduce(quarters << np.array([0, 2, 4, 6], np.uint8)[:, None, None])
        scale = np.array(scales).reshape(1)
        parts[f"{name}_scale"] = np.divide(1, scale, out=np.ones_like(scale), where=scale != 0)
    config = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    }
    trained = "as in training" if model.ternary_activations == "int8" else "unlike in training"
    note = (
        "ternary matrices in 2 bits per weight; transformers rounds the inputs of these matrices to 8 bits per token, "
        f"{trained}, and needs the package accelerate and, on a CPU, a C++ compiler"
    )
    return parts, {"quantization_config": config}, note


FORMS: dict[str, Callable[..., Packed]] = {"mlx-lm": _for_mlx_lm, "huggingface": _for_transformers}
