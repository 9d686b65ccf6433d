"""A transformer block: a mixer (such as attention) and a feed-forward network, each with a norm before it.

Shapes: B rows (sequences) in a batch, T tokens in a row, C n_embd.
"""

from collections.abc import Callable

from mlx_gpt.config.schema import ModelConfig, SpeedConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.ffn import ffn_class
from mlx_gpt.model.ffn.protocol import Aux
from mlx_gpt.model.mixers import mixer_class
from mlx_gpt.model.mixers.protocol import Mixer
from mlx_gpt.model.norm import Norm
from mlx_gpt.model.positions import Positions
from mlx_gpt.model.residual import residual_class
from mlx_gpt.model.specs import Specs, prefixed
from mlx_gpt.model.state import LayerState

Drop = Callable[[mx.array], mx.array]  # applies dropout to (B, T, C), or returns it unchanged


class Block(nn.Module):
    """One layer: s = write(s, drop(mixer(norm(read(s))))), then the same with the feed-forward network.

    `read` and `write` are those of the residual stream s. In the default network, this is s + drop(mixer(norm(s))).

    The attributes for the mixer and the feed-forward network are always called `attn` and `mlp`, whatever their class.
    These are randyGPT's names, and part of the weight names.

    Args:
        config: The settings of [model].
        layer: Number of the layer, from 0.
        speed: How to compute. Results differ by rounding only.
    """

    def __init__(self, config: ModelConfig, layer: int, speed: SpeedConfig):
        super().__init__()
        residual = residual_class(config)
        self.attn_norm, self.mlp_norm = (Norm(config.n_embd, config.norm_weights, config.norm_eps) for _ in range(2))
        self.attn_residual, self.mlp_residual = residual(config, 2 * layer), residual(config, 2 * layer + 1)
        self.attn = mixer_class(config.mixer_of[layer])(config, speed)
        self.mlp = ffn_class(config)(config)
        assert isinstance(self.attn, Mixer), f"mixer {config.mixer_of[layer]} lacks a member of the protocol Mixer"

    @staticmethod
    def specs(config: ModelConfig, layer: int) -> Specs:
        norm, residual = Norm.specs(config.n_embd, config.norm_weights), residual_class(config)
        return {
            **prefixed("attn", mixer_class(config.mixer_of[layer]).specs(config)),
            **prefixed("mlp", ffn_class(config).specs(config)),
            **prefixed("attn_norm", norm),
            **prefixed("mlp_norm", norm),
            **prefixed("attn_residual", residual.specs(config, 2 * layer)),
            **prefixed("mlp_residual", residual.specs(config, 2 * layer + 1)),
        }

    def __call__(
        self,
        s: mx.array,
        state: LayerState | None,
        positions: Positions,
        valid: mx.array | None,
        drop_attn: Drop,
        drop_mlp: Drop,
    ) -> tuple[mx.array, Aux]:
        """Computes the block.

        Args:
            s: The residual stream.
            state: The state of this layer in decoding; the mixer updates it in place. None in training.
            positions: The positions of the tokens.
            valid: (B,) int32, the number of tokens before padding in each row. None if there is no padding.
            drop_attn: Dropout for the output of the mixer.
            drop_mlp: Dropout for the output of the feed-forward network.

        Returns:
            The residual stream after this block, and the auxiliary outputs of the feed-forward network.
        """
        y = self.attn(self.attn_norm(self.attn_residual.read(s)), state, positions, valid)
        s = self.attn_residual.write(s, drop_attn(y))
        y, aux = self.mlp(self.mlp_norm(self.mlp_residual.read(s)))
        return self.mlp_residual.write(s, drop_mlp(y)), aux
