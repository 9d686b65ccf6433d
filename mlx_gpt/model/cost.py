"""What a network costs: parameters, operations, memory and memory traffic, computed from its specs."""

import math

from mlx.utils import tree_flatten

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.gpt import GPT
from mlx_gpt.model.mixers import layer_states, mixer_class


def num_params(config: ModelConfig, vocab_size: int) -> int:
    """The number of trained values."""
    return sum(math.prod(w.shape) for w in GPT.specs(config, vocab_size).values())


def flops_per_token(config: ModelConfig, vocab_size: int) -> float:
    """Floating-point operations of one training step, per token: products forward and, twice that, backward."""
    specs = GPT.specs(config, vocab_size).values()
    matmul_params = sum(math.prod(w.shape) for w in specs if w.role in ("matrix", "matrices"))
    matmul_params += vocab_size * config.n_embd  # the head, which may be the embedding
    return 6 * matmul_params + 3 * sum(mixer_class(name).token_flops(config) for name in config.mixer_of)


def state_bytes(config: ModelConfig, rows: int, dtype: mx.Dtype = mx.float32) -> int:
    """Bytes that the layers remember of `rows` sequences while decoding. Allocates nothing."""
    states = layer_states(config, rows, dtype)
    return sum(a.nbytes for state in states for _, a in tree_flatten(state.arrays))


def step_bytes(config: ModelConfig, vocab_size: int, rows: int, by_blocks: bool, remat: bool) -> int:
    """Roughly the peak memory of a float32 training step with `rows` sequences in flight.

    The factors fit measured peaks of model-xs to model-l within a quarter.
    """
    T, C = config.block_size, config.n_embd
    state = 5 * num_params(config, vocab_size)  # weights, moments, gradients, new weights
    block = 18 * T * C + (1.1 if by_blocks else 2.5) * config.n_head * T * T
    activations = config.n_layer * T * C + 3 * block if remat else config.n_layer * block
    return int(4 * (state + rows * (activations + 3 * T * vocab_size)))


def step_traffic(config: ModelConfig, vocab_size: int, tokens: int) -> int:
    """Roughly the bytes that a float32 step of `tokens` reads and writes, kernel by kernel.

    10 passes over the weights (twice for products, gradient, moments, update), 144 over the residual stream's width a
    layer (48 forward, twice that backward), 17 over the scores, of which blocks leave five eighths.
    """
    scores = 17 * 0.625 * config.n_head * config.block_size
    activations = config.n_layer * (144 * config.n_embd + scores) + 6 * vocab_size
    return int(4 * (10 * num_params(config, vocab_size) + tokens * activations))
