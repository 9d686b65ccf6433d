"""The table of training objectives."""

from mlx_gpt.config.schema import Config
from mlx_gpt.config.table import lookup
from mlx_gpt.rl.objectives import GRPO, GSPO, RFT, DrGRPO, MaxRL
from mlx_gpt.train.objective import CrossEntropy, Objective

# Objectives of rollouts: texts that the model writes, and their rewards.
ROLLOUT_OBJECTIVES: dict[str, type[Objective]] = {
    "grpo": GRPO,
    "dr-grpo": DrGRPO,
    "gspo": GSPO,
    "maxrl": MaxRL,
    "rft": RFT,
}
OBJECTIVES: dict[str, type[Objective]] = {"cross-entropy": CrossEntropy} | ROLLOUT_OBJECTIVES


def make_objective(config: Config) -> Objective:
    """Makes the objective that the setting `train.objective` names. Raises UserError for an unknown name."""
    return lookup(OBJECTIVES, config.train.objective, "objective", prefix="train.objective=")(config)
