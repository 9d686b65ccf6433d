"""Small networks with each option beyond randyGPT's network, for tests that must hold for all of them."""

import numpy as np
import pytest
from covering import covering
from toys import TOYS

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.decode import Decoder
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.linear import LINEARS
from mlx_gpt.model.packing import PACKED, as_packed

SHAPE = {"n_embd": 24, "n_head": 4, "n_layer": 2, "block_size": 16}

# Options that randyGPT's network does not have. The code of exported folders supports all of them.
EXTENSIONS = {
    "positions": "rotary",
    "qk_norm": True,
    "norm_weights": True,
    "final_norm": True,
    "tied_head": True,
    "ffn": "swiglu",
}

# A network of Llama's shape.
LLAMA = {
    "n_kv_head": 2,
    "positions": "rotary",
    "rope_theta": 500.0,
    "rope_scale": 4.0,
    "norm_eps": 0.001,
    "norm_weights": True,
    "final_norm": True,
    "tied_head": True,
    "ffn": "swiglu",
}

# Mixers beside attention, each with a setting that other networks lack.
LATENT = {"rope_scale": 4.0, "norm_weights": True, "mixers": ["mla"]}
LATENT |= {"q_lora_rank": 10, "qk_rope_head_dim": 4, "v_head_dim": 5}
HYBRID = {"mixers": ["gated_delta", "attention"]}
EXPERTS = {"positions": "rotary", "ffn": "moe", "n_expert": 3, "n_shared_expert": 1}
# All options that combine with every block.
ALL = EXTENSIONS | LLAMA | {"qk_rope_head_dim": 4, "ternary_norm": True}
TERNARY = LLAMA | {"linear": "ternary", "ternary_norm": True}

# Settings of the networks: randyGPT's, each option alone, all options together, and Llama's shape.
NETWORKS = [
    {},
    *({k: v} for k, v in EXTENSIONS.items()),
    {"n_kv_head": 1},
    {"linear": "ternary", "ternary_group": "row"},
    EXTENSIONS,
    LLAMA,
    TERNARY,
    {"mixers": ["mla"]},
    LATENT,
    {"mixers": ["gated_delta"]},
    HYBRID,
    {"ffn": "moe", "n_expert": 4},
    EXPERTS,
    {"residual": "mhc"},
    {"residual": "mhc", "n_stream": 4},
]


# The linear layers, and those that can be trained. The last one is a toy.
ANY_LINEAR = [*LINEARS, TOYS["linear"][1]]
TRAINED = [name for name in ANY_LINEAR if name != PACKED]


def blocks(together: int = 2, linears=tuple(ANY_LINEAR)) -> list:
    """Settings of networks with all combinations of the rows of MIXERS, FFNS, LINEARS and RESIDUALS and of the toys.

    The mixers are each one alone, and all in turn. The last value is without further options, or with all of them.

    Args:
        together: As for covering(), which marks all combinations as slow that it does not need.
        linears: The linear layers.
    """
    rows = {slot: [*table, name] for slot, (table, name, _) in TOYS.items()}
    mixers = [*([name] for name in rows["mixers"]), rows["mixers"]]
    options = ({}, {k: v for k, v in ALL.items() if k != "ffn"})
    found = []
    for param in covering(mixers, rows["ffn"], linears, rows["residual"], options, together=together):
        *values, option = param.values
        settings = dict(zip(("mixers", "ffn", "linear", "residual"), values, strict=True))
        name = "-".join(["+".join(settings["mixers"]), *values[1:], *(["options"] if option else [])])
        found.append(pytest.param(settings | option, marks=param.marks, id=name))
    return found


def names(settings):
    """Returns the test id of a row of NETWORKS, such as "positions+qk_norm". None lets pytest choose it."""
    return "+".join(settings) if isinstance(settings, dict) else None


def shaped(settings):
    """Returns the ModelConfig with these settings and SHAPE, with a layer for each of the mixers."""
    return ModelConfig(**SHAPE | {"n_layer": max(SHAPE["n_layer"], len(settings.get("mixers", ())))} | settings)


def network(settings):
    """Returns a model of 11 token ids with these settings, whose matrices and norms are far from their initial values.

    The initial weights are so small that attention and norms hardly change the output. Tests would then miss errors in
    them. Packed matrices are those of the network with ternary ones.
    """
    if settings.get("linear") == PACKED:
        return packed(network(settings | {"linear": "ternary"}))
    config, draw = shaped(settings), np.random.default_rng(4)
    model, roles = GPT(config, 11, seed=3), roles_of(config, 11)
    weights = {k: w * 8 for k, w in model.weights().items() if w.ndim > 1}
    gains = (k for k, role in roles.items() if role == "gain")
    weights |= {k: mx.array(draw.uniform(0.5, 2, model.weights()[k].shape).astype(np.float32)) for k in sorted(gains)}
    model.set_weights(weights)
    mx.eval(model.weights())
    return model


def packed(model):
    """Returns the model with packed matrices instead of ternary ones."""
    config, weights = as_packed(model.config, {k: np.array(w) for k, w in model.weights().items()})
    found = GPT(config, model.vocab_size)
    found.set_weights({k: mx.array(w) for k, w in weights.items()})
    return found


def likeliest(model, prompts, count):
    """Returns the ids (B, count) that greedy decoding generates after the prompts (B, T), as one batch."""
    decoder = Decoder(model, lambda logits, index: mx.argmax(logits, axis=-1))
    ids, state = decoder.read(prompts, mx.array(0))
    found = [ids]
    for index in range(1, count):
        ids, state = decoder.step(ids, mx.array(index), state, prompts.shape[1] + index)
        found.append(ids)
    return np.array(mx.stack(found, axis=1))


def plain_greedy(model, prompt, count):
    """The ids that greedy decoding generates, each computed from the whole window before it, without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        window = tokens[-model.config.block_size :]
        tokens.append(mx.argmax(model(mx.array([window]))[0, -1]).item())
    return tokens[len(prompt) :]
