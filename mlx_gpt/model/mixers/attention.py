"""Causal self-attention.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd, H heads, D head_dim.
"""

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.linear import linear_class
from mlx_gpt.model.mixers.kernels import attend_cached, make_attend
from mlx_gpt.model.norm import rms_norm
from mlx_gpt.model.positions import Positions, rotate
from mlx_gpt.model.specs import Normal, Specs, prefixed
from mlx_gpt.model.state import KVState


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention without bias. The softmax is computed in float32.

    With `model.qk_norm`, queries and keys of each head are normalized (RMSNorm without weights). With
    `model.positions` = "rotary", they are then rotated by their positions.
    """

    State = KVState

    def __init__(self, config: ModelConfig, speed: SpeedConfig):
        super().__init__()
        self.n_head = config.n_head
        self.head_dim = config.head_dim
        self.rotary, self.qk_norm = config.positions == "rotary", config.qk_norm
        self.attend = make_attend(speed.attention, speed.query_blocks)
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, linear_class(config)(config, config.n_embd, config.n_embd))

    @staticmethod
    def specs(config: ModelConfig) -> Specs:
        C, linear = config.n_embd, linear_class(config)
        stds = {"wq": 0.02, "wk": 0.02, "wv": 0.02, "wo": 0.02 / (2 * config.n_layer) ** 0.5}
        return {
            key: weight
            for name, std in stds.items()
            for key, weight in prefixed(name, linear.specs(config, C, C, Normal(std))).items()
        }

    @staticmethod
    def token_flops(config: ModelConfig) -> float:
        """Returns 4 C T for a full context T: 2 C T for the scores and 2 C T for the weighted sum of the values."""
        return 4 * config.n_embd * config.block_size

    def __call__(self, x: mx.array, state: KVState | None, positions: Positions, valid: mx.array | None) -> mx.array:
        """Computes attention. See `Mixer` for the arguments.

        `valid` is not used. Real tokens do not attend to the padding after them. In the state, the next real tokens
        overwrite the keys and values of the padding before any query can read them.
        """
        B, T, C = x.shape
        q, k, v = (self._heads(w(x)) for w in (self.wq, self.wk, self.wv))  # (B, H, T, D)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if self.rotary:
            q, k = rotate(q, positions), rotate(k, positions)
        keys, values = state.extend(k, v, positions) if state else (k, v)
        if positions.at_start:
            y = self.attend(q, k, v, self.head_dim**-0.5)
        else:
            y = attend_cached(q, keys, values, self.head_dim**-0.5, positions.mask(keys.shape[2]))
        return self.wo(_swap(y).reshape(B, T, C))

    def _heads(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        return _swap(x.reshape(B, T, self.n_head, self.head_dim))  # (B, H, T, D)


def _swap(x: mx.array) -> mx.array:
    """Swaps axes 1 and 2: (B, T, H, D) to (B, H, T, D), and back.

    If one of these axes has size 1, the data are already in the right order, and a reshape avoids a strided view.
    """
    B, M, N, D = x.shape
    return x.reshape(B, N, M, D) if 1 in (M, N) else x.swapaxes(1, 2)
