"""Gated DeltaNet (arXiv:2412.06464): a recurrent mixer whose state does not grow with the number of tokens.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd, H heads, D head_dim, W taps of the convolution.
"""

from typing import Any

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.linear import linear_class
from mlx_gpt.model.mixers.delta_rule import delta_rule
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.specs import LogUniform, Normal, Specs, Weight, prefixed

TAPS = 4  # inputs that the convolution reads: of a token and of the three before it
NORM_EPS = 1e-6  # added to the squared length of a query or key


class DeltaState:
    """The state of a layer: the memory (B, H, D, D) and the last inputs of the convolution (B, W - 1, 3 C), float32."""

    def __init__(self, arrays: tuple[mx.array, mx.array]):
        self.arrays = arrays

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, room: int, dtype: mx.Dtype) -> "DeltaState":
        H, D = config.n_head, config.head_dim
        return cls((mx.zeros((rows, H, D, D)), mx.zeros((rows, TAPS - 1, 3 * config.n_embd))))

    @staticmethod
    def resized(arrays: Any, room: int) -> Any:
        return arrays


class GatedDeltaNet(nn.Module):
    """Linear attention with the gated delta rule, see delta_rule().

    Queries, keys and values pass a causal convolution of W taps per channel and a SiLU. Queries and keys are normalized
    to length 1. Of each head and token, the write strength is sigmoid(wb x), and the log decay is
    -exp(decay) softplus(wa x + shift). Each head of the output is normalized and multiplied by SiLU(wg x).
    """

    State = DeltaState

    def __init__(self, config: ModelConfig, speed: SpeedConfig):
        super().__init__()
        self.config = config
        for name in ("wq", "wk", "wv", "wg", "wo"):
            setattr(self, name, linear_class(config)(config, config.n_embd, config.n_embd))
        for name, weight in _small(config).items():
            setattr(self, name, mx.zeros(weight.shape))
        self.out_norm = Norm(config.head_dim, True, config.norm_eps)

    @staticmethod
    def specs(config: ModelConfig) -> Specs:
        C, linear, found = config.n_embd, linear_class(config), {}
        for name in ("wq", "wk", "wv", "wg", "wo"):
            std = 0.02 / (2 * config.n_layer) ** 0.5 if name == "wo" else 0.02
            found |= prefixed(name, linear.specs(config, C, C, Normal(std)))
        return found | _small(config) | prefixed("out_norm", Norm.specs(config.head_dim, True))

    @staticmethod
    def token_flops(config: ModelConfig) -> float:
        """Returns 6 C D + 4 C W: three products with the memory of each head, and the convolution."""
        return 6 * config.n_embd * config.head_dim + 4 * config.n_embd * TAPS

    def __call__(self, x: mx.array, state: DeltaState | None, positions: Positions, valid: mx.array | None) -> mx.array:
        """Computes the mixer. See `Mixer` for the arguments."""
        B, T, C = x.shape
        H, D = self.config.n_head, self.config.head_dim
        found = state if state and not positions.at_start else DeltaState.zeros(self.config, B, 0, x.dtype)
        memory, before = found.arrays
        inputs = mx.concatenate([w(x) for w in (self.wq, self.wk, self.wv)], axis=-1).astype(mx.float32)
        inputs = mx.concatenate([before, inputs], axis=1)  # (B, W - 1 + T, 3 C)
        taps = [inputs[:, i : i + T] * self.conv[:, i] for i in range(TAPS)]
        heads = nn.silu(sum(taps)).reshape(B, T, 3, H, D).transpose(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]  # (B, H, T, D)
        q, k = (a * mx.rsqrt((a * a).sum(axis=-1, keepdims=True) + NORM_EPS) for a in (q, k))
        gates = x.astype(mx.float32)
        strength = mx.sigmoid(gates @ self.wb.T)  # (B, T, H)
        log_decay = -mx.exp(self.decay) * nn.softplus(gates @ self.wa.T + self.shift)
        if valid is not None:
            real = (mx.arange(T) < valid[:, None])[..., None]
            strength, log_decay = mx.where(real, strength, 0), mx.where(real, log_decay, 0)
        y, memory = delta_rule(q * D**-0.5, k, v, strength.swapaxes(1, 2), log_decay.swapaxes(1, 2), memory)
        if state:
            state.arrays = memory, _last(inputs, T, valid)
        y = self.out_norm(y).swapaxes(1, 2).reshape(B, T, C).astype(x.dtype)
        return self.wo(y * nn.silu(self.wg(x)))


def _last(inputs: mx.array, count: int, valid: mx.array | None) -> mx.array:
    """Returns the last W - 1 of the inputs (B, W - 1 + T, 3 C) that are not padding, for T = `count` tokens."""
    if valid is None:
        return inputs[:, count:]
    places = (valid[:, None] + mx.arange(TAPS - 1))[..., None]
    return mx.take_along_axis(inputs, places, axis=1)


def _small(config: ModelConfig) -> Specs:
    """The specs of the weights that are not linear layers. They stay float32."""
    C, H = config.n_embd, config.n_head
    return {
        "conv": Weight((3 * C, TAPS), Normal(TAPS**-0.5), "scalar", float32=True),
        "wa": Weight((H, C), Normal(0.02), "scalar", float32=True),
        "wb": Weight((H, C), Normal(0.02), "scalar", float32=True),
        "decay": Weight((H,), LogUniform(1.0, 16.0, mx.log), "scalar", float32=True),
        "shift": Weight((H,), LogUniform(1e-3, 1e-1, lambda x: x + mx.log(-mx.expm1(-x))), "scalar", float32=True),
    }
