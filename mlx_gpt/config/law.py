"""Predicts the validation loss at the end of a run from its length.

A law is a curve through the measured losses of one preset on tiny Shakespeare, with its characters as tokens and the
settings that `--tokens` chooses (config/budget.py). experiments/learning/laws.py measures the losses and fits the
curves, see docs/learning.md.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from mlx_gpt.config.budget import Budget, fitted, tokens_per_update
from mlx_gpt.config.presets import preset_of, resolve
from mlx_gpt.config.schema import Config

MILLION = 1_000_000
CORPUS = "shakespeare"
SAME_UPDATES = 1.5  # the updates of a predicted run may be larger or smaller by at most this factor
SAME_DROPOUT = 0.05  # its dropout may differ by at most this much
# Settings that do not change what a run of a given length learns, or that are compared separately.
NOT_COMPARED = ("batch_size", "grad_accum_steps", "iters", "tokens", "minutes", "seed", "eval_every", "eval_at_start")
NOT_COMPARED += ("sample_every", "save_minutes", "log_every", "patience", "device_mb")


@dataclass(frozen=True, slots=True)
class Law:
    """The loss of a run of D tokens, limit + scale (D / MILLION)^-power, in nats per token.

    Attributes:
        error: The largest difference between the loss of a run and its prediction by a curve that was fitted without
            the runs of this length.
        shortest, longest: The lengths in tokens of the shortest and of the longest runs that were measured.
    """

    limit: float
    scale: float
    power: float
    error: float
    shortest: int
    longest: int

    def loss(self, tokens: int) -> float:
        return self.limit + self.scale * (tokens / MILLION) ** -self.power


LAWS = {  # name of a preset -> its law
    "llama-s": Law(limit=1.1874, scale=0.3786, power=0.37, error=0.03, shortest=125_000, longest=2_000_000),
}


class Prediction(NamedTuple):
    """The validation loss that is expected at the end of a run, in nats per token, and the error of its law."""

    loss: float
    error: float


def predicted(config: Config, budget: Budget) -> Prediction | str:
    """Predicts the validation loss at the end of a run.

    Args:
        config: The settings of the run.
        budget: Its length, and the tokens of its text.

    Returns:
        The prediction, or one line that says why no law holds for this run.
    """
    if config.data.corpus != (CORPUS,):
        return f"the loss is not predicted: only runs on the corpus {CORPUS} were measured"
    name = preset_of(config.model)
    if name not in LAWS:
        return f"the loss is not predicted: only runs of {', '.join(LAWS)} were measured at several lengths"
    other = _difference(config, fitted(resolve(name), set(), budget))
    if other:
        return f"the loss is not predicted: the runs that were measured had {other}"
    law = LAWS[name]
    # The tokens of a run are whole updates, so they may be less than its length by a part of an update.
    if not law.shortest - tokens_per_update(config) < budget.tokens <= law.longest:
        return (
            f"the loss is not predicted: runs of {name} were measured from {law.shortest:,} to {law.longest:,} tokens, "
            f"and this one has {budget.tokens:,}"
        )
    return Prediction(law.loss(budget.tokens), law.error)


def _difference(config: Config, measured: Config) -> str | None:
    """Says which setting of a run differs from those of the runs of a law, or returns None."""
    own, other = tokens_per_update(config), tokens_per_update(measured)
    if not 1 / SAME_UPDATES <= own / other <= SAME_UPDATES:
        return f"updates of about {other:,} tokens at this length, and this one has {own:,}"
    own, other = config.model.dropout, measured.model.dropout
    if abs(own - other) > SAME_DROPOUT + 1e-9:
        return f"model.dropout={other} at this length, and this one has {own}"
    measured = measured.replace({"data.corpus": (CORPUS,)})
    for table in (config.data, config.train, config.optimizer):
        for key in (field.name for field in dataclasses.fields(table)):
            name = f"{table.table_name()}.{key}"
            own, other = config.get(name), measured.get(name)
            if key not in NOT_COMPARED and own != other:
                return f"{name}={other}, and this one has {own}"
    return None
