"""Predicts the validation loss at the end of a run from its length.

A law is a curve through the measured losses of one preset on tiny Shakespeare, with its characters as tokens and the
settings that `--tokens` chooses (config/budget.py). experiments/learning/laws.py measures the losses and fits the
curves, see docs/learning.md.
"""

from dataclasses import dataclass

from mlx_gpt.config.budget import Budget, fitted, tokens_per_update
from mlx_gpt.config.presets import preset_of, resolve
from mlx_gpt.config.schema import Config, DataConfig

MILLION = 1_000_000
CORPUS = "shakespeare"
SAME_UPDATES = 1.5  # a law also holds for updates that are larger or smaller by at most this factor
SAME_DROPOUT = 0.05  # ... and for a dropout that differs by at most this much


@dataclass(frozen=True, slots=True)
class Law:
    """The loss of a run of D tokens, limit + scale (D / MILLION)^-power, in nats per token.

    Attributes:
        error: The largest difference between a measured loss and its prediction by a curve that was fitted without the
            runs of this length.
        shortest, longest: The lengths in tokens between which losses were measured.
    """

    limit: float
    scale: float
    power: float
    error: float
    shortest: int
    longest: int

    def loss(self, tokens: int) -> float:
        return self.limit + self.scale * (tokens / MILLION) ** -self.power


LAWS: dict[str, Law] = {}  # name of a preset -> its law


def predicted(config: Config, budget: Budget) -> tuple[float, float] | str:
    """Predicts the validation loss at the end of a run.

    Args:
        config: The settings of the run.
        budget: Its length, and the tokens of its text.

    Returns:
        The loss in nats per token and its error, see Law. If no law holds for this run, one line that says why.
    """
    name = preset_of(config.model)
    if name not in LAWS:
        return f"the loss is not predicted: only {', '.join(LAWS)} were measured at several lengths"
    other = _difference(config, fitted(resolve(name), set(), budget))
    if other:
        return f"the loss is not predicted: the runs that were measured had {other}"
    law = LAWS[name]
    if not law.shortest <= budget.tokens <= law.longest:
        return (
            f"the loss is not predicted: runs of {name} were measured from {law.shortest:,} to {law.longest:,} tokens, "
            f"and this one has {budget.tokens:,}"
        )
    return law.loss(budget.tokens), law.error


def _difference(config: Config, measured: Config) -> str | None:
    """Names what differs between the settings of a run and those of the runs of a law, or None."""
    factor = tokens_per_update(config) / tokens_per_update(measured)
    found = {
        f"the corpus {CORPUS} with its characters as tokens": config.data != DataConfig(corpus=(CORPUS,)),
        "another objective": config.train.objective != measured.train.objective,
        "the optimizer settings that --tokens chooses": config.optimizer != measured.optimizer,
        "the size of updates that --tokens chooses": not 1 / SAME_UPDATES <= factor <= SAME_UPDATES,
        "the dropout that --tokens chooses": abs(config.model.dropout - measured.model.dropout) > SAME_DROPOUT + 1e-9,
    }
    return next((name for name, differs in found.items() if differs), None)
