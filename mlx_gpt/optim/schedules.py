"""The learning rate as a function of the step, computed on the host."""

import math

from mlx_gpt.config.schema import OptimizerConfig

WARMUP_FROM = 0.1  # share of the peak at which the warm-up begins
# The factor of the rate after a share `progress` of the decay, both from 0 to 1.
DECAYS = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
    "wsd": lambda progress: 1 - progress,
}


def learning_rate(config: OptimizerConfig, step: int, iters: int, cuts: int = 0) -> float:
    """The learning rate of one update: warm-up, flat, decay.

    Args:
        config: The settings of [optimizer].
        step: The update, from 0.
        iters: Updates of the whole run.
        cuts: How often the peak was cut on a plateau.
    """
    peak = max(config.learning_rate * config.lr_cut**cuts, config.min_learning_rate)
    if step < config.warmup_steps:
        return peak * (WARMUP_FROM + (1 - WARMUP_FROM) * step / config.warmup_steps)
    decay_from = config.warmup_steps if config.schedule == "linear" else config.decay_start * iters
    if step < decay_from:
        return peak
    progress = min((step - decay_from) / max(iters - decay_from, 1), 1.0)
    return config.min_learning_rate + (peak - config.min_learning_rate) * DECAYS[config.schedule](progress)
