"""Settings that follow from the length of a run: its batch, dropout, learning-rate schedule and evaluations.

The constants come from runs of tiny Shakespeare, see docs/learning.md.
"""

import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from mlx_gpt.config.effects import has_effect
from mlx_gpt.config.schema import MOST_MICRO_BATCHES, UNTIL_TIME_IS_UP, Config
from mlx_gpt.errors import UserError

# Tokens of an update: UPDATE_TOKENS in a run of RUN_TOKENS tokens, and proportional to a power of its tokens in others.
RUN_TOKENS, UPDATE_TOKENS, UPDATE_POWER = 500_000, 512, 0.66
# The critical size of an update is this multiple of those tokens. Above this size, further tokens in an update save few
# updates (arXiv:1812.06162).
CRITICAL = 9
MICRO_BATCH_TOKENS = 16_384  # a larger update is divided into micro-batches, so that its memory stays the same
# A run has dropout DROPOUT if it reads its text DROPOUT_PASSES times, and its network has DROPOUT_PARAMETERS parameters
# for each token of the text. These passes are proportional to a power of the parameters. The dropout grows with the
# logarithm of the passes.
DROPOUT_PASSES, DROPOUT_PARAMETERS, DROPOUT_POWER = 40, 4, -0.6
DROPOUT, DROPOUT_GROWTH, MAX_DROPOUT = 0.1, 0.144, 0.3
DECAY_START = 0.1  # the learning rate decreases from this share of the run on
MOST_EVALUATIONS, EVALUATION_SHARE = 20, 0.2  # evaluations of a run, and about the share of its time that they may take
EVALUATION_COST = 1 / 3  # time of a token in an evaluation, as a multiple of that in training
MAX_EVAL_EVERY = 1 << 30

BATCH = {"train.batch_size", "train.grad_accum_steps"}
# The settings that follow from the length of a run.
CHOSEN = BATCH | {
    "model.dropout",
    "optimizer.decay_start",
    "optimizer.ema_decay",
    "optimizer.warmup_steps",
    "train.eval_every",
}


@dataclass(frozen=True, slots=True)
class Budget:
    """The length of a run and of its text in tokens, and the size of its network.

    Attributes:
        tokens: Tokens that the run trains on.
        parameters: Parameters of the network.
        train_tokens, val_tokens: Tokens of the two splits of the text.
        overhead: See UpdateTime; 0 if the time of the run is not limited.
        processes: The number of processes, each of which needs a sequence of an update.
    """

    tokens: int
    parameters: int
    train_tokens: int
    val_tokens: int
    overhead: float = 0.0
    processes: int = 1


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

    def tokens_in(self, seconds: float, update_tokens: int | None) -> int:
        """Returns the tokens of a run of this time, with updates of this size, or None for the size that fits."""
        tokens = seconds / self.per_token
        for _ in range(10):  # the size that fits follows from the tokens, and the tokens from the size: this converges
            size = update_tokens or _update_tokens(tokens, self.overhead)
            tokens = seconds / (self.fixed / size + self.per_token)
        return max(1, int(tokens))


def chosen_names(config: Config, given: Set[str]) -> set[str]:
    """Returns the names of the settings that follow from the length of a run if those in `given` keep their values.

    Settings that have no effect keep their values, too.
    """
    names = CHOSEN - given - (BATCH if given & BATCH else set())
    return {name for name in names if has_effect(config, name)}


def fitted(config: Config, given: Set[str], budget: Budget) -> Config:
    """Returns the settings with those of chosen_names() set to values that fit a budget.

    `optimizer.ema_decay` becomes 0, because the decay of the learning rate has the same effect as an average.

    Args:
        config: The settings of the run.
        given: Dotted names of the settings that keep their values.
        budget: The budget.
    """
    values: dict[str, Any] = {
        "model.dropout": _dropout(budget),
        "optimizer.decay_start": DECAY_START,
        "optimizer.ema_decay": 0.0,
    }
    values |= _batch(budget, config.model.block_size)
    names = chosen_names(config, given)
    config = config.replace({name: value for name, value in values.items() if name in names})
    return with_counts(config, names, budget)


def with_counts(config: Config, names: Set[str], budget: Budget) -> Config:
    """Returns the settings with those of `names` that count updates set to values that fit a budget."""
    by_iters = {
        "optimizer.warmup_steps": _warmup_steps(config, budget),
        "train.eval_every": _eval_every(config, budget),
    }
    return config.replace({name: value for name, value in by_iters.items() if name in names})


def passes(tokens: int, train_tokens: int) -> str:
    """Describes how often a run of `tokens` reads its text, as "0.5 passes"."""
    times = tokens / train_tokens
    return f"{times:.1f} passes" if times >= 0.1 else "under 0.1 passes"


def iters_of(config: Config, tokens: int) -> int:
    """Returns the number of updates with at most this number of tokens. It may be 0."""
    return tokens // tokens_per_update(config)


def with_iters(config: Config) -> Config:
    """Returns the settings of a new run with the number of updates that `train.tokens` means, which is at least 1.

    Without `train.tokens`, the settings stay as they are.

    Raises:
        UserError: These are too many updates.
    """
    tokens = config.train.tokens
    if not tokens:
        return config
    iters = max(1, iters_of(config, tokens))
    if iters >= UNTIL_TIME_IS_UP:
        raise UserError(
            f"train.tokens={tokens} are {iters:,} updates of {config.train.sequences_per_step} sequences, and at most "
            f"{UNTIL_TIME_IS_UP - 1:,} are allowed; give fewer tokens, or larger updates with --batch"
        )
    return config.replace({"train.iters": iters})


def tokens_per_update(config: Config) -> int:
    """Returns the tokens of an update."""
    return config.train.sequences_per_step * config.model.block_size


def _update_tokens(tokens: float, overhead: float) -> float:
    """The tokens of an update that fit a run of `tokens`.

    If the time of the run is limited, larger updates make better use of the fixed part of their time. With a critical
    size C, an update of B tokens makes progress in proportion to B / (B + C), in a time in proportion to B + overhead.
    The progress in a given time is largest for B = sqrt(C * overhead).
    """
    update = UPDATE_TOKENS * (tokens / RUN_TOKENS) ** UPDATE_POWER
    return max(update, math.sqrt(CRITICAL * update * overhead))


def _batch(budget: Budget, block_size: int) -> dict[str, int]:
    """The sequences of a micro-batch, and the micro-batches of an update."""
    micro_batch, update = max(1, MICRO_BATCH_TOKENS // block_size), _update_tokens(budget.tokens, budget.overhead)
    sequences = min(max(budget.processes, round(update / block_size)), micro_batch * MOST_MICRO_BATCHES)
    accum = math.ceil(sequences / micro_batch)
    return {"train.batch_size": math.ceil(sequences / accum), "train.grad_accum_steps": accum}


def _dropout(budget: Budget) -> float:
    """The dropout that fits the passes over the text and the parameters for each of its tokens, a multiple of 0.05."""
    parameters = budget.parameters / budget.train_tokens
    reference = DROPOUT_PASSES * (parameters / DROPOUT_PARAMETERS) ** DROPOUT_POWER
    dropout = DROPOUT + DROPOUT_GROWTH * math.log(budget.tokens / budget.train_tokens / reference)
    return round(min(max(dropout, 0.0), MAX_DROPOUT) * 20) / 20


def _warmup_steps(config: Config, budget: Budget) -> int:
    """The updates of the warm-up, which ends where the learning rate begins to decrease, or before."""
    share = config.optimizer.decay_start if has_effect(config, "optimizer.decay_start") else DECAY_START
    return min(config.optimizer.warmup_steps, int(share * iters_of(config, budget.tokens)))


def _eval_every(config: Config, budget: Budget) -> int:
    """The updates between evaluations, the last of which is at the end of the run. A multiple of `train.sync_every`."""
    train = config.train
    read = min(budget.val_tokens, train.eval_windows * config.model.block_size or budget.val_tokens)
    cost = EVALUATION_COST * read * (2 if config.optimizer.ema_decay else 1)
    evaluations = min(max(1, int(EVALUATION_SHARE * budget.tokens / cost)), MOST_EVALUATIONS)
    iters = min(max(1, iters_of(config, budget.tokens)), MAX_EVAL_EVERY)
    every = math.ceil(iters / evaluations)
    return math.ceil(every / (train.sync_every or 1)) * (train.sync_every or 1)
