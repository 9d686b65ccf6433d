"""The learning rate as a function of the step, computed on the host."""

import math

from mlx_gpt.config import OptimizerConfig

WARMUP_FROM = 0.1  # share of the peak at which the warm-up begins


def learning_rate(config: OptimizerConfig, step: int, iters: int, cuts: int = 0) -> float:
    """The rate of update `step` (0-based) of `iters`, its peak cut `cuts` times: warm-up, flat, cosine."""
    peak = max(config.learning_rate * config.lr_cut**cuts, config.min_learning_rate)
    if step < config.warmup_steps:
        return peak * (WARMUP_FROM + (1 - WARMUP_FROM) * step / config.warmup_steps)
    decay_from = config.decay_start * iters
    if step < decay_from:
        return peak
    progress = min((step - decay_from) / max(iters - decay_from, 1), 1.0)
    return config.min_learning_rate + (peak - config.min_learning_rate) * 0.5 * (1 + math.cos(math.pi * progress))
