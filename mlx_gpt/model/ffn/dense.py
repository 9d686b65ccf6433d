"""The feed-forward half of a block: squared ReLU (arXiv:2109.08668) between two matrices, or SwiGLU."""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx, nn


@mx.custom_function
def squared_relu(x: mx.array) -> mx.array:
    """max(x, 0)^2. Its gradient is 2 max(x, 0): MLX's own would mask by x > 0 what is zero already."""
    return mx.square(mx.maximum(x, 0))


@squared_relu.vjp
def _(x, cotangent, _output):
    return cotangent * (2 * mx.maximum(x, 0))


class MLP(nn.Module):
    """fc2(max(fc1(x), 0)^2), no bias."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.mlp_dim, bias=False)
        self.fc2 = nn.Linear(config.mlp_dim, config.n_embd, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(squared_relu(self.fc1(x)))


class SwiGLU(MLP):
    """fc2(silu(fc_gate(x)) fc1(x)), no bias (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.fc_gate = nn.Linear(config.n_embd, config.mlp_dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.silu(self.fc_gate(x)) * self.fc1(x))


MLPS = {"relu2": MLP, "swiglu": SwiGLU}
