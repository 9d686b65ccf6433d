"""The cost of a network: parameters, operations, memory and memory traffic, estimated from its settings and specs."""

import dataclasses
import math

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import UserError
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.mixers import layer_states, mixer_class
from mlx_gpt.model.packing import PACKED
from mlx_gpt.model.specs import Specs
from mlx_gpt.model.state import leaves
from mlx_gpt.model.ternary import TRITS_PER_BYTE, two_bit_group


def num_params(config: ModelConfig, vocab_size: int) -> int:
    """Returns the number of parameters. Packed matrices count as what they stand for."""
    return sum(math.prod(w.shape) for w in _trained_specs(config, vocab_size).values())


def _trained_specs(config: ModelConfig, vocab_size: int) -> Specs:
    """The specs of the weights, with packed matrices as what they stand for."""
    if config.linear == PACKED:
        config = dataclasses.replace(config, linear="ternary")
    return GPT.specs(config, vocab_size)


def num_active_params(config: ModelConfig, vocab_size: int) -> int:
    """Returns the number of parameters that compute a token: of the experts, only those that a token chooses."""
    specs = _trained_specs(config, vocab_size).values()
    idle = sum(math.prod(w.shape) for w in specs if w.role == "matrices") // config.n_expert
    return num_params(config, vocab_size) - idle * (config.n_expert - config.n_expert_per_token)


def packed_sizes(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Returns the sizes in bytes of all weights of a ternary network, in each of their forms.

    Returns:
        `float_bytes` in float32, also the size in memory on a CPU when it generates text; `packed_bytes` with packed
        matrices, as in a packed checkpoint; `packed_gpu_bytes` in memory on a GPU when it generates text. Empty if the
        network has no ternary layers, or a width that cannot be packed.
    """
    if config.linear != "ternary":
        return {}
    try:
        specs = GPT.specs(dataclasses.replace(config, linear=PACKED), vocab_size)
    except UserError:  # a width that is no multiple of TRITS_PER_BYTE
        return {}
    sizes = {name: math.prod(w.shape) * (1 if w.dtype == "uint8" else 4) for name, w in specs.items()}
    on_gpu = sum(size for name, size in sizes.items() if specs[name].role != "packed")
    for name, codes in specs.items():
        if codes.dtype == "uint8":
            rows, columns = codes.shape[0], codes.shape[1] * TRITS_PER_BYTE
            group = two_bit_group(columns, specs[f"{name.removesuffix('codes')}scales"].shape[1])
            # A group has a scale and a bias in float32. Without a group, the matrix is float32.
            on_gpu += sizes[name] + 8 * rows * columns // group if group else 4 * rows * columns
    return {
        "float_bytes": 4 * num_params(config, vocab_size),
        "packed_bytes": sum(sizes.values()),
        "packed_gpu_bytes": on_gpu,
    }


def flops_per_token(config: ModelConfig, vocab_size: int) -> float:
    """Returns the floating-point operations of a training step per token. Only matrix products are counted, and of the
    experts only those that a token chooses.

    A weight needs 2 operations per token in the forward pass and 4 in the backward pass.
    """
    idle = num_params(config, vocab_size) - num_active_params(config, vocab_size)
    specs = GPT.specs(config, vocab_size).values()
    matmul_params = sum(math.prod(w.shape) for w in specs if w.role in ("matrix", "matrices")) - idle
    matmul_params += vocab_size * config.n_embd  # the head; with model.tied_head, its matrix is the embedding
    return 6 * matmul_params + 3 * sum(mixer_class(name).token_flops(config) for name in config.mixer_of)


def state_bytes(config: ModelConfig, rows: int, dtype: mx.Dtype = mx.float32) -> int:
    """Returns the size of the decoding state of `rows` sequences in bytes. Allocates nothing."""
    states = layer_states(config, rows, config.block_size, dtype)
    return sum(a.nbytes for state in states for a in leaves(state.arrays))


def decoding_bytes(config: ModelConfig) -> dict[str, int]:
    """Returns the size of the float32 decoding state of one sequence in bytes, in two parts.

    Returns:
        decoding_bytes_per_token: What each token adds, such as the keys and values of attention.
        decoding_bytes_per_sequence: What does not depend on the number of tokens, such as the memories of gated_delta.
    """
    one, two = (state_bytes(dataclasses.replace(config, block_size=room), 1) for room in (1, 2))
    return {"decoding_bytes_per_token": two - one, "decoding_bytes_per_sequence": 2 * one - two}


def step_bytes(config: ModelConfig, vocab_size: int, rows: int, by_blocks: bool, remat: bool) -> int:
    """Estimates the peak memory of a float32 training step in bytes.

    The factors were fitted to measured peaks of the presets. The estimates are within 25% of the measured peaks.

    Args:
        config: The network.
        vocab_size: The number of token ids.
        rows: The number of sequences that are computed at the same time.
        by_blocks: Whether the attention kernel is "blocks", which stores fewer scores.
        remat: Whether each block is recomputed in the backward pass, so that its activations are not stored.
    """
    T, C = config.block_size, config.n_embd
    state = 5 * num_params(config, vocab_size)  # weights, two moments, gradients, new weights
    # Numbers of float32 values for one sequence: the activations of one block, those of all blocks, and the logits.
    block = 18 * T * C + (1.1 if by_blocks else 2.5) * config.n_head * T * T
    activations = config.n_layer * T * C + 3 * block if remat else config.n_layer * block
    return int(4 * (state + rows * (activations + 3 * T * vocab_size)))


def context_bytes(config: ModelConfig, vocab_size: int, by_blocks: bool) -> int:
    """Estimates the peak memory of a float32 forward pass over one full context in bytes, without the weights.

    The number of scores was fitted to measured peaks on a CPU. Kernels other than "blocks" do not store the scores.
    """
    T = config.block_size
    scores = 1.4 * config.n_head * T * T if by_blocks else 0
    return int(4 * (scores + T * (vocab_size + 8 * config.n_embd)))


def step_traffic(config: ModelConfig, vocab_size: int, tokens: int) -> int:
    """Estimates the bytes that the kernels of a float32 training step read and write for `tokens` tokens.

    The estimate adds up, in float32 values:

    - the weights 10 times: for the matrix products, the gradients, the moments and the update;
    - n_embd values 144 times per token and layer: 48 in the forward pass, 96 in the backward pass;
    - the attention scores 17 times, five eighths of n_head * block_size per token and layer, as the kernel "blocks"
      with four query blocks computes them;
    - the logits 6 times.
    """
    scores = 17 * 0.625 * config.n_head * config.block_size
    activations = config.n_layer * (144 * config.n_embd + scores) + 6 * vocab_size
    return int(4 * (10 * num_params(config, vocab_size) + tokens * activations))
