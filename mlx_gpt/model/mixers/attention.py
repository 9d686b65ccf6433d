"""Causal self-attention.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd, H heads of queries, K heads of keys and values,
D head_dim.
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

    With `model.n_kv_head`, query head h uses the keys and values of head h // (H / K) (arXiv:2305.13245).
    With `model.qk_norm`, queries and keys of each head are normalized (RMSNorm without weights). With
    `model.positions` = "rotary", they are then rotated by their positions.
    """

    State = KVState

    def __init__(self, config: ModelConfig, speed: SpeedConfig):
        super().__init__()
        self.config, self.rotary = config, config.positions == "rotary"
        self.attend = make_attend(speed.attention, speed.query_blocks)
        C, KV, linear = config.n_embd, config.num_kv_heads * config.head_dim, linear_class(config)
        self.wq, self.wo = linear(config, C, C), linear(config, C, C)
        self.wk, self.wv = linear(config, C, KV), linear(config, C, KV)

    @staticmethod
    def specs(config: ModelConfig) -> Specs:
        C, KV, linear = config.n_embd, config.num_kv_heads * config.head_dim, linear_class(config)
        return {
            **prefixed("wq", linear.specs(config, C, C, Normal(0.02))),
            **prefixed("wk", linear.specs(config, C, KV, Normal(0.02))),
            **prefixed("wv", linear.specs(config, C, KV, Normal(0.02))),
            **prefixed("wo", linear.specs(config, C, C, Normal(0.02 / (2 * config.n_layer) ** 0.5))),
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
        q, k, v = (self._heads(w(x)) for w in (self.wq, self.wk, self.wv))  # (B, H, T, D) and (B, K, T, D)
        if self.config.qk_norm:
            q, k = (rms_norm(a, self.config.norm_eps) for a in (q, k))
        if self.rotary:
            q, k = (rotate(a, positions, self.config.rope_base) for a in (q, k))
        keys, values = state.extend(k, v, positions=positions) if state else (k, v)
        if positions.at_start:
            y = self.attend(q, k, v, self.config.head_dim**-0.5)
        else:
            y = attend_cached(q, keys, values, self.config.head_dim**-0.5, positions.mask(keys.shape[2]))
        return self.wo(_swap(y).reshape(B, T, C))

    def _heads(self, x: mx.array) -> mx.array:
        B, T, _ = x.shape
        return _swap(x.reshape(B, T, -1, self.config.head_dim))


def _swap(x: mx.array) -> mx.array:
    """Swaps axes 1 and 2: (B, T, H, D) to (B, H, T, D), and back.

    If one of these axes has size 1, the data are already in the right order, and a reshape avoids a strided view.
    """
    B, M, N, D = x.shape
    return x.reshape(B, N, M, D) if 1 in (M, N) else x.swapaxes(1, 2)
