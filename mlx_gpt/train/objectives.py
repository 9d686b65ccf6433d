"""The table of training objectives."""

from mlx_gpt.config.schema import TrainConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.train.objective import CrossEntropy, Objective

OBJECTIVES: dict[str, type[Objective]] = {"cross-entropy": CrossEntropy}


def make_objective(config: TrainConfig) -> Objective:
    """Makes the objective that the setting `train.objective` names. Raises UserError for an unknown name."""
    return lookup(OBJECTIVES, config.objective, "objective", prefix="train.objective=")(config)
