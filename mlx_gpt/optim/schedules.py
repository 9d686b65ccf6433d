"""Learning-rate schedules. The learning rate of each step is computed on the host."""

import math

from mlx_gpt.config.schema import OptimizerConfig

WARMUP_FROM = 0.1  # the warm-up begins at this share of the peak, except for wsd-cosine, where it begins at 0


def _cosine(progress: float) -> float:
    """From 1 at progress 0 to 0 at progress 1, along half a period of a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))


# For each `optimizer.schedule`, how far the rate is above its minimum during the decay: 1 is the peak, 0 the minimum.
# `progress` goes from 0 at the start of the decay to 1 at the end of the run. wsd is warm-up, stable, decay.
DECAYS = {
    "cosine": _cosine,
    "linear": lambda progress: 1 - progress,
    "wsd": lambda progress: 1 - progress,
    "wsd-cosine": _cosine,
}


def learning_rate(config: OptimizerConfig, step: int, iters: int, cuts: int = 0) -> float:
    """Returns the learning rate of one update.

    The rate rises linearly over `warmup_steps` updates from a tenth of the peak to the peak. It stays there until the
    decay starts, and then falls to `min_learning_rate` at the end of the run. With schedule "linear", the decay starts
    right after the warm-up; with the others, after the share `decay_start` of the run. "wsd-cosine" is "cosine" with a
    warm-up that begins at 0, so its first update changes nothing.

    Example: "wsd" with learning_rate 0.003, min_learning_rate 0, warmup_steps 20, decay_start 0.6 and iters 2000. The
    rate is 0.0003 at update 0, 0.003 from update 20 to 1200, 0.0015 at 1600, and nearly 0 at 1999, the last one.

    Args:
        config: The settings of [optimizer].
        step: The number of the update, from 0.
        iters: The number of updates of the whole run.
        cuts: The number of times that the peak was multiplied by `lr_cut`, each after a plateau of the validation loss.
            The peak is never cut below `min_learning_rate`.
    """
    peak = max(config.learning_rate * config.lr_cut**cuts, config.min_learning_rate)
    if step < config.warmup_steps:
        first = 0.0 if config.schedule == "wsd-cosine" else WARMUP_FROM
        return peak * (first + (1 - first) * step / config.warmup_steps)
    decay_from = config.warmup_steps if config.schedule == "linear" else config.decay_start * iters
    if step < decay_from:
        return peak
    progress = min((step - decay_from) / max(iters - decay_from, 1), 1.0)
    return config.min_learning_rate + (peak - config.min_learning_rate) * DECAYS[config.schedule](progress)
