"""When the ranks of a group exchange what they have learned: gradients at each step, or weights after some steps.

A round is one step or more at whose end all ranks hold the same weights. Evaluations, saves and the end of the run come
between rounds.

`LocalSteps` is DiLoCo (arXiv:2311.08105). With the weights w at the start of a round, and the weights w_r that rank r
reaches after H steps of its own, the end of the round is

    d = w - mean of w_r,    b <- momentum b + d,    w <- w - rate (d + momentum b)

which is an update by the outer optimizer, SGD with Nesterov momentum, for the gradient d.
"""

from typing import Any, Protocol

import numpy as np
from mlx.utils import tree_flatten

from mlx_gpt.config.schema import Config
from mlx_gpt.device.mlx import mx
from mlx_gpt.train.parallel import Group, Local, of_rank, share

OUTER = "outer"  # the part of a checkpoint's optimizer tensors that holds the outer momentum b
Tensors = dict[str, np.ndarray]


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

    def exchange(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Returns the weights at the end of a round, equal on all ranks. Every rank must call it."""
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

    def exchange(self, weights):
        return weights

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

    def exchange(self, weights):
        rows, optimizer = self._config.train.sequences_per_step, self._config.optimizer
        own = share(self._group, rows)
        weight, rate, momentum = (own.stop - own.start) / rows, optimizer.outer_learning_rate, optimizer.outer_momentum
        means, new = self._group.sum({name: w * weight for name, w in weights.items()}), {}
        for name, mean in means.items():
            difference = self._start[name] - mean
            self._momentum[name] = momentum * self._momentum[name] + difference
            new[name] = self._start[name] - rate * (difference + momentum * self._momentum[name])
        mx.eval(new, self._momentum)
        self._start = new
        return new

    def tensors(self, state):
        found = {f"{OUTER}.{name}": np.array(a) for name, a in self._momentum.items()}
        parts = {part: arrays for part, arrays in state.items() if isinstance(arrays, dict)}
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
