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
CRITICAL = 5  # the critical size of an update (arXiv:1812.06162), as a multiple of these tokens
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
        overhead: See UpdateTime; 0 if the time of the run is not limited.
    """

    tokens: int
    train_tokens: int
    val_tokens: int
    overhead: float = 0.0

    @property
    def passes(self) -> float:
        """How often the run reads the training split."""
        return self.tokens / self.train_tokens


@dataclass(frozen=True, slots=True)
class UpdateTime:
    """The time of an update: `fixed` seconds, and `per_token` seconds for each of its tokens.

    Attributes:
        overhead: The tokens that take as long as the fixed part of an update.
    """

    fixed: float
    per_token: float

    @property
    def overhead(self) -> float:
        return self.fixed / self.per_token

    def tokens_in(self, seconds: float, update: int | None) -> int:
        """Returns the tokens of a run of this time, with updates of `update` tokens, or None for the size that fits."""
        tokens = seconds / self.per_token
        for _ in range(10):  # the size that fits depends on the tokens, and the tokens on the size
            size = update or _update_tokens(tokens, self.overhead)
            tokens = seconds / (self.fixed / size + self.per_token)
        return max(1, int(tokens))


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
    if not update_of(config, given):
        chosen |= _batch(_update_tokens(budget.tokens, budget.overhead), config.model.block_size)
    config = config.replace({key: value for key, value in chosen.items() if key not in given})
    if "train.eval_every" in given:
        return config
    return config.replace({"train.eval_every": _eval_every(iters_of(config, budget.tokens), budget)})


def iters_of(config: Config, tokens: int) -> int:
    """Returns the number of updates with at most this number of tokens, but at least 1.

    Raises:
        UserError: These are too many updates.
    """
    iters = max(1, tokens // _tokens_per_update(config))
    if iters >= UNTIL_TIME_IS_UP:
        raise UserError(
            f"train.tokens={tokens} are {iters:,} updates of {config.train.sequences_per_step} sequences; give fewer "
            "tokens, or larger updates with --batch"
        )
    return iters


def update_of(config: Config, given: set[str]) -> int | None:
    """Returns the tokens of an update if a given setting determines them, or None."""
    return _tokens_per_update(config) if given & {"train.batch_size", "train.grad_accum_steps"} else None


def _tokens_per_update(config: Config) -> int:
    return config.train.sequences_per_step * config.model.block_size


def _update_tokens(tokens: float, overhead: float) -> float:
    """The tokens of an update, in a run of `tokens`.

    If the time of the run is limited, larger updates make better use of the fixed part of their time. With a critical
    size C, an update of B tokens makes progress in proportion to B / (B + C), in a time in proportion to B + overhead.
    The progress in a given time is largest for B = sqrt(C * overhead).
    """
    update = UPDATE_TOKENS * (tokens / RUN_TOKENS) ** UPDATE_POWER
    return max(update, math.sqrt(CRITICAL * update * overhead))


def _batch(update: float, block_size: int) -> dict[str, int]:
    """The sequences of a micro-batch, and the micro-batches of an update of `update` tokens."""
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
