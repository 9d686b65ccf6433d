"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values are linear maps of a small latent.

Shapes: B rows (sequences) in a batch, T tokens in a row, S keys, C n_embd, H heads, R width of the latent. A query or
key has N channels without positions and P channels with rotary positions. A value has E channels.
"""

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.linear import Dense, Linear, linear_class
from mlx_gpt.model.mixers.kernels import attend_cached, make_attend
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.positions import Positions, rotate
from mlx_gpt.model.specs import Normal, Specs, prefixed
from mlx_gpt.model.state import KVState


class LatentState(KVState):
    """The cache: of each token the normalized latent and the rotated key that all heads share, (B, 1, S, R + P)."""

    @classmethod
    def zeros(cls, config: ModelConfig, rows: int, room: int, dtype: mx.Dtype) -> "LatentState":
        return cls((mx.zeros((rows, 1, room, config.mla.latent + config.mla.rope), dtype),))


class LatentAttention(nn.Module):
    """Causal latent attention without bias. The softmax is computed in float32.

    A token has a latent c (R), normalized, and one rotary key (P). Head h has the key [U_h c, rotary key] and the value
    V_h c. With `model.q_lora_rank`, the queries are computed from a latent of that width too. The rotary channels have
    positions whatever `model.positions` is.

    In training and for a prompt, keys and values are computed. In decoding they are not: a score is q U_h c = (U_h^T q)
    c, so U_h is applied to the query, and V_h to the weighted sum of the latents. U and V are one matrix, wkv_b, which
    is dense whatever `model.linear` is.
    """

    State = LatentState

    def __init__(self, config: ModelConfig, speed: SpeedConfig):
        super().__init__()
        self.config, self.widths = config, config.mla
        self.attend = make_attend(speed.attention, speed.query_blocks)
        for name, (kind, outputs, inputs) in _linears(config).items():
            setattr(self, name, kind(config, inputs, outputs))
        for name, width in _norms(config).items():
            setattr(self, name, Norm(width, config.norm_weights, config.norm_eps))

    @staticmethod
    def specs(config: ModelConfig) -> Specs:
        found: Specs = {}
        for name, (kind, outputs, inputs) in _linears(config).items():
            std = 0.02 / (2 * config.n_layer) ** 0.5 if name == "wo" else 0.02
            found |= prefixed(name, kind.specs(config, inputs, outputs, Normal(std)))
        for name, width in _norms(config).items():
            found |= prefixed(name, Norm.specs(width, config.norm_weights))
        return found

    @staticmethod
    def token_flops(config: ModelConfig) -> float:
        """Returns 2 H T (N + P + E) for a full context T: the scores, and the weighted sum of the values."""
        widths = config.mla
        return 2 * config.n_head * config.block_size * (widths.nope + widths.rope + widths.value)

    def __call__(
        self, x: mx.array, state: LatentState | None, positions: Positions, valid: mx.array | None
    ) -> mx.array:
        """Computes attention. See `Mixer` for the arguments. `valid` is not used, as in `CausalSelfAttention`."""
        B, T, _ = x.shape
        H, (R, N, P, E) = self.config.n_head, self.widths
        q = self.wq_b(self.q_norm(self.wq_a(x))) if "wq_a" in self else self.wq(x)
        q = q.reshape(B, T, H, N + P).swapaxes(1, 2)
        base = self.config.rope_base_of(P)
        q_rope = rotate(q[..., N:], positions, base)
        latent, key = mx.split(self.wkv_a(x)[:, None], [R], axis=-1)  # (B, 1, T, R) and (B, 1, T, P)
        latent, key = self.kv_norm(latent), rotate(key, positions, base)
        if state:
            (cache,) = state.extend(mx.concatenate([latent, key], axis=-1), positions=positions)
        scale = (N + P) ** -0.5
        if positions.at_start:
            keys, values = mx.split(self._up(latent), [N], axis=-1)  # (B, H, T, N) and (B, H, T, E)
            keys = mx.concatenate([keys, mx.broadcast_to(key, (B, H, T, P))], axis=-1)
            y = self.attend(mx.concatenate([q[..., :N], q_rope], axis=-1), keys, values, scale)
        else:
            up = self.wkv_b.weight.reshape(H, N + E, R)
            q = mx.concatenate([q[..., :N] @ up[:, :N], q_rope], axis=-1)  # (B, H, T, R + P)
            y = attend_cached(q, cache, cache[..., :R], scale, positions.mask(cache.shape[2]))
            y = y @ up[:, N:].swapaxes(1, 2)  # (B, H, T, E)
        return self.wo(y.swapaxes(1, 2).reshape(B, T, H * E))

    def _up(self, latent: mx.array) -> mx.array:
        """Maps latents (B, 1, T, R) to keys and values, (B, H, T, N + E)."""
        B, _, T, _ = latent.shape
        return self.wkv_b(latent[:, 0]).reshape(B, T, self.config.n_head, -1).swapaxes(1, 2)


def _linears(config: ModelConfig) -> dict[str, tuple[type[Linear], int, int]]:
    """The class, the outputs and the inputs of each linear layer by name."""
    linear, C, H, rank = linear_class(config), config.n_embd, config.n_head, config.q_lora_rank
    R, N, P, E = config.mla
    queries = {"wq_a": (linear, rank, C), "wq_b": (linear, H * (N + P), rank)} if rank else {}
    return {
        **(queries or {"wq": (linear, H * (N + P), C)}),
        "wkv_a": (linear, R + P, C),
        "wkv_b": (Dense, H * (N + E), R),
        "wo": (linear, C, H * E),
    }


def _norms(config: ModelConfig) -> dict[str, int]:
    """The width of each norm by name."""
    return {"kv_norm": config.mla.latent} | ({"q_norm": config.q_lora_rank} if config.q_lora_rank else {})
