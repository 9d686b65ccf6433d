"""Settings that follow from the length of a run: its batch, dropout, learning-rate decay and evaluations.

The constants come from runs of tiny Shakespeare, see docs/training.md.
"""

import math
from dataclasses import dataclass
from typing import Any

from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.errors import UserError

# Tokens of an update: UPDATE_TOKENS in a run of RUN_TOKENS tokens, and proportional to a power of its tokens in others.
RUN_TOKENS, UPDATE_TOKENS, UPDATE_POWER = 500_000, 512, 0.55
MICRO_BATCH_TOKENS = 16_384  # a larger update is divided into micro-batches, so that its memory stays the same
# Dropout of a run that reads its text DROPOUT_PASSES times, and how much it grows with the logarithm of the passes.
DROPOUT_PASSES, DROPOUT, DROPOUT_GROWTH, MAX_DROPOUT = 5, 0.1, 0.0675, 0.3
DECAY_START = 0.1  # the learning rate decreases from this share of the run on
MOST_EVALUATIONS, EVALUATION_SHARE = 20, 0.2  # evaluations of a run, and about the share of its time that they may take
EVALUATION_COST = 1 / 3  # time of a token in an evaluation, as a multiple of that in training


@dataclass(frozen=True, slots=True)
class Budget:
    """The length of a run and of its text, all in tokens.

    Attributes:
        tokens: Tokens that the run trains on.
        train_tokens, val_tokens: Tokens of the two splits of the text.
    """

    tokens: int
    train_tokens: int
    val_tokens: int

    @property
    def passes(self) -> float:
        """How often the run reads the training split."""
        return self.tokens / self.train_tokens


def fitted(config: Config, given: set[str], budget: Budget) -> Config:
    """Returns the settings with those chosen that fit a budget and that nobody gave.

    Chosen are `train.batch_size` and `train.grad_accum_steps` (unless one of them is given), `model.dropout`,
    `optimizer.decay_start`, `optimizer.ema_decay` (none, because the decay has the same effect), and, from the
    resulting number of updates, `train.eval_every`.

    Args:
        config: The settings of the run.
        given: Dotted names of the settings that keep their values.
        budget: The budget.
    """
    chosen: dict[str, Any] = {
        "model.dropout": _dropout(budget.passes),
        "optimizer.decay_start": DECAY_START,
        "optimizer.ema_decay": 0.0,
    }
    if not given & {"train.batch_size", "train.grad_accum_steps"}:
        chosen |= _batch(budget.tokens, config.model.block_size)
    config = config.replace({key: value for key, value in chosen.items() if key not in given})
    if "train.eval_every" in given:
        return config
    return config.replace({"train.eval_every": _eval_every(iters_of(config, budget.tokens), budget)})


def iters_of(config: Config, tokens: int) -> int:
    """Returns the number of updates with at most this number of tokens, but at least 1.

    Raises:
        UserError: These are too many updates.
    """
    iters = max(1, tokens // (config.train.sequences_per_step * config.model.block_size))
    if iters >= UNTIL_TIME_IS_UP:
        raise UserError(
            f"train.tokens={tokens} are {iters:,} updates of {config.train.sequences_per_step} sequences; give fewer "
            "tokens, or larger updates with --batch"
        )
    return iters


def _batch(tokens: int, block_size: int) -> dict[str, int]:
    """The sequences of a micro-batch, and the micro-batches of an update."""
    update = UPDATE_TOKENS * (tokens / RUN_TOKENS) ** UPDATE_POWER
    sequences = max(1, round(update / block_size))
    accum = math.ceil(sequences * block_size / MICRO_BATCH_TOKENS)
    return {"train.batch_size": math.ceil(sequences / accum), "train.grad_accum_steps": accum}


def _dropout(passes: float) -> float:
    """The dropout of a run, a multiple of 0.05."""
    dropout = DROPOUT + DROPOUT_GROWTH * math.log(passes / DROPOUT_PASSES)
    return round(min(max(dropout, 0.0), MAX_DROPOUT) * 20) / 20


def _eval_every(iters: int, budget: Budget) -> int:
    """The updates between evaluations, the last of which is at the end of the run."""
    affordable = EVALUATION_SHARE * budget.tokens / (EVALUATION_COST * budget.val_tokens)
    return math.ceil(iters / min(max(1, int(affordable)), MOST_EVALUATIONS))
