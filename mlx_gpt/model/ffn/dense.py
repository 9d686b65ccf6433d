"""Dense feed-forward networks: with squared ReLU (arXiv:2109.08668), and SwiGLU (arXiv:2002.05202).

Shapes: C n_embd, F ffn_width.
"""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.ffn.protocol import Aux
from mlx_gpt.model.linear import linear_class
from mlx_gpt.model.specs import Normal, Specs, prefixed


@mx.custom_function
def squared_relu(x: mx.array) -> mx.array:
    """Returns max(x, 0)^2.

    The gradient is defined here as 2 max(x, 0). MLX's automatic gradient would also multiply by the mask x > 0, which
    changes nothing and costs time.
    """
    return mx.square(mx.maximum(x, 0))


@squared_relu.vjp
def _(x, cotangent, _output):
    return cotangent * (2 * mx.maximum(x, 0))


class ReLU2(nn.Module):
    """fc2(max(fc1(x), 0)^2), without bias. fc1 maps C to F channels, fc2 maps F to C. `width` is F."""

    def __init__(self, config: ModelConfig, width: int | None = None):
        super().__init__()
        linear, C, F = linear_class(config), config.n_embd, width or config.ffn_width
        self.fc1 = linear(config, C, F)
        self.fc2 = linear(config, F, C)

    @staticmethod
    def specs(config: ModelConfig, width: int | None = None) -> Specs:
        linear, C, F = linear_class(config), config.n_embd, width or config.ffn_width
        return {
            **prefixed("fc1", linear.specs(config, C, F, Normal(0.02))),
            **prefixed("fc2", linear.specs(config, F, C, Normal(0.02 / (2 * config.n_layer) ** 0.5))),
        }

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        return self.fc2(squared_relu(self.fc1(x))), {}


class SwiGLU(ReLU2):
    """fc2(silu(fc_gate(x)) * fc1(x)), without bias. fc_gate and fc1 map C to F channels, fc2 maps F to C."""

    def __init__(self, config: ModelConfig, width: int | None = None):
        super().__init__(config, width)
        self.fc_gate = linear_class(config)(config, config.n_embd, width or config.ffn_width)

    @staticmethod
    def specs(config: ModelConfig, width: int | None = None) -> Specs:
        gate = linear_class(config).specs(config, config.n_embd, width or config.ffn_width, Normal(0.02))
        return ReLU2.specs(config, width) | prefixed("fc_gate", gate)

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        return self.fc2(nn.silu(self.fc_gate(x)) * self.fc1(x)), {}
