"""When the ranks of a group exchange what they have learned: gradients at each step, or weights after some steps.

A round is one step or more at whose end all ranks hold the same weights. Evaluations, saves and the end of the run come
between rounds.

`LocalSteps` is DiLoCo (arXiv:2311.08105). With the weights w at the start of a round, and the weights w_r that rank r
reaches after H steps of its own, the end of the round is

    d = w - mean of w_r,    b <- momentum b + d,    w <- w - rate (d + momentum b)

which is an update by the outer optimizer, SGD with Nesterov momentum, for the gradient d. The moving averages of the
weights, if they are kept, are replaced by their mean.
"""

from typing import Any, Protocol

import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_gpt.config.schema import Config
from mlx_gpt.device.mlx import mx
from mlx_gpt.train.parallel import Group, Local, of_rank, share

OUTER = "outer"  # the part of a checkpoint's optimizer tensors that holds the outer momentum b
AVERAGE = "ema"  # the part with the moving average of the weights
Tensors = dict[str, np.ndarray]
State = dict[str, Any]


class Rounds(Protocol):
    """The exchange between the ranks of a group.

    Attributes:
        inner: The group within which a step sums its counts and gradients.
    """

    inner: Group

    def restore(self, optimizer, weights: dict[str, mx.array], tensors: Tensors, num_updates: int) -> dict[str, Any]:
        """Returns the optimizer state with which this rank starts. Every rank must call it.

        Args:
            optimizer: The optimizer.
            weights: The weights at the start, equal on all ranks.
            tensors: On rank 0, the optimizer tensors of a checkpoint by name. Ignored on other ranks.
            num_updates: The number of updates that the checkpoint counts.
        """
        ...

    def end(self, step: int, iters: int) -> int:
        """Returns the number of finished steps at the end of a round.

        Args:
            step: The number of finished steps before or in the round, below `iters`.
            iters: The number of steps of the run, at which its last round ends.
        """
        ...

    def exchange(self, state: State) -> State:
        """Returns the training state at the end of a round. Its weights and their average are equal on all ranks."""
        ...

    def own(self) -> Tensors:
        """Returns what a checkpoint of the last exchange holds besides rank 0's state and those of other ranks."""
        ...

    def tensors(self, state: dict[str, Any]) -> Tensors:
        """Returns what a checkpoint holds besides rank 0's state. Every rank must call it, with its optimizer state."""
        ...


class EachStep:
    """Gradients are summed over the ranks in each step. All ranks have the same state."""

    def __init__(self, group: Group, config: Config):
        self.inner = group

    def restore(self, optimizer, weights, tensors, num_updates):
        return of_rank(self.inner, 0, optimizer.restore(weights, tensors, num_updates))

    def end(self, step, iters):
        return step + 1

    def exchange(self, state):
        return state

    def own(self):
        return {}

    def tensors(self, state):
        return {}


class LocalSteps:
    """Each rank makes `train.sync_every` steps with its own gradients and its own optimizer state."""

    def __init__(self, group: Group, config: Config):
        self._group, self._config, self.inner = group, config, Local(group)

    def restore(self, optimizer, weights, tensors, num_updates):
        self._start = weights
        given = {name: mx.array(tensors.get(f"{OUTER}.{name}", mx.zeros_like(w))) for name, w in weights.items()}
        self._momentum = of_rank(self._group, 0, given)
        mx.eval(self._momentum)
        for rank in range(self._group.size):
            found = of_rank(self._group, 0, optimizer.restore(weights, _of(tensors, rank), num_updates))
            if rank == self._group.rank:
                own = found
        return own

    def end(self, step, iters):
        every = self._config.train.sync_every
        return min(step - step % every + every, iters)

    def exchange(self, state):
        rows, settings = self._config.train.sequences_per_step, self._config.optimizer
        own, optimizer = share(self._group, rows), state["optimizer"]
        shared = {"weights": state["weights"]} | {part: optimizer[part] for part in {AVERAGE} & optimizer.keys()}
        means = self._group.sum(tree_map(lambda a: a * ((own.stop - own.start) / rows), shared))
        rate, momentum, weights, moved = settings.outer_learning_rate, settings.outer_momentum, {}, {}
        for name, mean in means.pop("weights").items():
            difference = self._start[name] - mean
            moved[name] = momentum * self._momentum[name] + difference
            weights[name] = self._start[name] - rate * (difference + momentum * moved[name])
        mx.eval(weights, means, moved)
        self._start, self._momentum = weights, moved  # not before: if a rank is lost, eval raises
        return {"weights": weights, "optimizer": optimizer | means}

    def own(self):
        return {f"{OUTER}.{name}": np.array(a) for name, a in self._momentum.items()}

    def tensors(self, state):
        found = self.own()
        parts = {part: a for part, a in state.items() if isinstance(a, dict) and part != AVERAGE}
        for rank in range(1, self._group.size):
            for name, array in tree_flatten(of_rank(self._group, rank, parts)):
                part, _, weight = name.partition(".")
                found[f"{part}@{rank}.{weight}"] = np.array(array)
        return found


def make_rounds(group: Group, config: Config) -> Rounds:
    """Makes the exchange that the settings name."""
    return (LocalSteps if config.train.sync_every else EachStep)(group, config)


def _of(tensors: Tensors, rank: int) -> Tensors:
    """Returns the optimizer tensors of a rank. A rank that the checkpoint does not have takes those of rank 0."""
    mark = f"@{rank}."
    return tensors | {name.replace(mark, ".", 1): a for name, a in tensors.items() if mark in name}
