"""A small implementation of each seam, for tests only. The fixture `toys` adds them to the tables of implementations.

A seam is a typing.Protocol with a table of implementations, see docs/architecture.md.

Shapes: B batch, T time, C channels.
"""

from typing import NamedTuple

import numpy as np
from mlx.utils import tree_map

from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.ffn import FFNS
from mlx_gpt.model.linear import LINEARS, linear_class
from mlx_gpt.model.mixers import MIXERS
from mlx_gpt.model.residual import RESIDUALS
from mlx_gpt.model.specs import Constant, Normal, Weight, prefixed


class SumState:
    """The state of DecayedSum: the last h of each row, (B, C)."""

    def __init__(self, arrays):
        self.arrays = arrays

    @classmethod
    def zeros(cls, config, rows, room, dtype):
        return cls({"sum": mx.zeros((rows, config.n_embd), dtype)})

    @staticmethod
    def resized(arrays, room):
        return arrays


class DecayedSum(nn.Module):
    """A mixer: h_t = a h_(t-1) + U x_t, y_t = W h_t, with one learned decay a = sigmoid(decay).

    Without a state, h_t = sum over s <= t of a^(t - s) U x_s. With a state, a^(t + 1) h is added, where h is the state
    and t counts from 0.
    """

    State = SumState

    def __init__(self, config, speed):
        super().__init__()
        self.enter, self.leave = (linear_class(config)(config, config.n_embd, config.n_embd) for _ in range(2))
        self.decay = mx.zeros(1)

    @staticmethod
    def specs(config):
        C, linear = config.n_embd, linear_class(config)
        return {
            **prefixed("enter", linear.specs(config, C, C, Normal(0.02))),
            **prefixed("leave", linear.specs(config, C, C, Normal(0.02))),
            "decay": Weight((1,), Constant(1.0), "scalar"),
        }

    @staticmethod
    def token_flops(config):
        return 2 * config.n_embd

    def __call__(self, x, state, positions, valid):
        B, T, _ = x.shape
        log_decay = -mx.logaddexp(mx.zeros(1), -self.decay)  # log sigmoid(decay)
        ages = mx.arange(T)[:, None] - mx.arange(T)  # (T, T)
        powers = mx.where(ages >= 0, mx.exp(mx.maximum(ages, 0) * log_decay), 0.0).astype(x.dtype)
        h = powers @ self.enter(x)  # (B, T, C)
        if state:
            if not positions.at_start:
                h = h + mx.exp(mx.arange(1, T + 1)[:, None] * log_decay) * state.arrays["sum"][:, None]
            last = mx.full((B,), T) if valid is None else valid  # the number of tokens that are not padding
            state.arrays = {"sum": h[mx.arange(B), last - 1]}
        return self.leave(h)


class Counted(nn.Module):
    """A feed-forward network with GELU and an auxiliary output: the mean square of its result."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = linear_class(config)(config, config.n_embd, config.ffn_width)
        self.fc2 = linear_class(config)(config, config.ffn_width, config.n_embd)

    @staticmethod
    def specs(config):
        C, F, linear = config.n_embd, config.ffn_width, linear_class(config)
        return {
            **prefixed("fc1", linear.specs(config, C, F, Normal(0.02))),
            **prefixed("fc2", linear.specs(config, F, C, Normal(0.02))),
        }

    def __call__(self, x):
        y = self.fc2(nn.gelu(self.fc1(x)))
        return y, {"square": mx.mean(mx.square(y.astype(mx.float32)))}


class Halves(nn.Module):
    """A linear layer whose matrix is the sum of two trained matrices. pack() replaces them by their sum."""

    def __init__(self, config, inputs, outputs):
        super().__init__()
        self.one = self.two = mx.zeros((outputs, inputs))

    @staticmethod
    def specs(config, inputs, outputs, init):
        return {name: Weight((outputs, inputs), init, "matrix") for name in ("one", "two")}

    @staticmethod
    def matrix(weights, config):
        return weights["one"] + weights["two"]

    @staticmethod
    def prepared(x, config):
        return x

    def __call__(self, x):
        return x @ (self.one + self.two).T

    def pack(self):
        packed = nn.Linear(self.one.shape[1], self.one.shape[0], bias=False)
        packed.weight = self.one + self.two
        return packed


class TwoStreams(nn.Module):
    """A residual stream that consists of two streams, (B, T, 2, C). Before each write, a learned share mixes them."""

    def __init__(self, config, unit):
        super().__init__()
        self.share = mx.zeros(1)

    @staticmethod
    def specs(config, unit):
        return {"share": Weight((1,), Constant(2.0 - unit % 2), "scalar")}

    def expand(self, x):
        return mx.stack([x, mx.zeros_like(x)], axis=2)

    def read(self, s):
        return s[:, :, 0] + 0.5 * s[:, :, 1]

    def write(self, s, y):
        share = mx.sigmoid(self.share)
        mixed = share * s + (1 - share) * s[:, :, ::-1]
        return mixed + mx.stack([y, -0.5 * y], axis=2)

    def collapse(self, s):
        return s.sum(axis=2)


class Marked(NamedTuple):
    """A batch for the objective Squares: token ids (B, T) and the wanted first logits (B, T)."""

    inputs: mx.array
    wanted: mx.array


class Squares:
    """An objective: the mean of (first logit - wanted)^2, plus 0.1 times the auxiliary outputs of the model."""

    def __init__(self, config):
        pass

    def count(self, batch):
        return mx.array(float(batch.wanted.size))

    def __call__(self, logits, aux, batch):
        squares = mx.square(logits[..., 0].astype(mx.float32) - batch.wanted).sum()
        extra = sum(aux.values(), mx.array(0.0)) * self.count(batch)
        return squares + 0.1 * extra, {"squares": squares}


class Repeated:
    """A source of batches: a window of `size` rows, which moves on by one row at each step and wraps around."""

    def __init__(self, rows, size):
        self.rows, self.size, self.position = rows, size, {"row": 0}
        self.tokens_per_batch, self.num_tokens = size * rows.shape[1], rows.size
        self.metrics = {}

    def next(self, step, weights):
        first = self.position["row"]
        self.position = {"row": first + 1}
        return [np.take(self.rows, range(first, first + self.size), axis=0, mode="wrap")]

    def gather(self, rows):
        return Marked(rows, rows.astype(mx.float32) / 10)

    def seek(self, position):
        self.position = dict(position)


class Descent:
    """Plain gradient descent. It has no state but the number of updates."""

    def restore(self, weights, tensors, num_updates):
        return {"num_updates": mx.array(num_updates, dtype=mx.int32)}

    def update(self, weights, grads, state, lr):
        return {name: w - lr * grads[name] for name, w in weights.items()}, {"num_updates": state["num_updates"] + 1}


class Twins:
    """Rank 0 of a group of two processes that have the same rows: a sum over the ranks doubles its own value."""

    rank, size = 0, 2

    def sum(self, tree):
        return tree_map(lambda a: a + a, tree)

    def gather(self, *numbers):
        return [list(numbers)] * 2

    def failure(self, error):
        return None

    def leave(self, is_done):
        pass


# Setting of [model] -> (table of the seam, name of the new row, the toy).
TOYS = {
    "mixers": (MIXERS, "decayed-sum", DecayedSum),
    "ffn": (FFNS, "counted", Counted),
    "linear": (LINEARS, "halves", Halves),
    "residual": (RESIDUALS, "two-streams", TwoStreams),
}
