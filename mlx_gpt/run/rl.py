"""The request for reinforcement learning, and its checks that need no model."""

from pathlib import Path
from typing import Any

from mlx_gpt.config.presets import resolve
from mlx_gpt.config.table import lookup
from mlx_gpt.errors import UserError
from mlx_gpt.rl.prompts import training_prompts
from mlx_gpt.rl.rewards import make_reward
from mlx_gpt.run.request import Request
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES, make_objective

# Settings of reinforcement learning that differ from the defaults. Without dropout, the first update with a batch has
# the very probabilities with which its texts were drawn. The last weights are evaluated, and are therefore the best.
RL_DEFAULTS = {
    "model.dropout": 0.0,
    "train.objective": "grpo",
    "train.iters": 100,
    "train.eval_every": 1 << 31,
    "train.sample_every": 0,
    "train.log_every": 1,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "wsd",
    "optimizer.decay_start": 1.0,
    "optimizer.warmup_steps": 5,
    "optimizer.weight_decay": 0.0,
}


def rl_request(
    settings: dict[str, Any], *, checkpoint: Path | None = None, out: Path | None = None, resume: str | None = None
) -> Request:
    """Returns the request for a run of reinforcement learning.

    Args:
        settings: Settings by dotted name, which override RL_DEFAULTS.
        checkpoint: The model to begin with.
        out: Folder of the run; None for a new folder in runs/.
        resume: Run folder to resume, or NEWEST.

    Raises:
        UserError: Both `checkpoint` and `resume` are given, or none of them; or the objective is not one of rewards.
    """
    if resume and checkpoint:
        raise UserError(f"--resume continues a run, and {checkpoint} begins a new one; give one of them")
    if not resume and not checkpoint:
        raise UserError("checkpoint is missing; name the model to begin with")
    if (objective := settings.get("train.objective")) == "cross-entropy":
        raise UserError(
            f"{objective} is not an objective of rewards; choose from {', '.join(ROLLOUT_OBJECTIVES)}, or use mlxgpt "
            "train --fine-tune"
        )
    if objective:
        lookup(ROLLOUT_OBJECTIVES, objective, "objective", prefix="train.objective=")
    defaults = {} if resume else RL_DEFAULTS
    return Request(
        settings=settings, out=out, resume=resume, fine_tune=checkpoint, defaults=defaults, with_rewards=True
    )


def require_rewards(request: Request) -> None:
    """Raises UserError or BadFile if a setting, the reward or the prompts of a new run cannot be used."""
    config = resolve(None, request.recipe, request.settings, request.base)
    make_objective(config)
    make_reward(config.rl)
    training_prompts(config.rl)
