"""The feed-forward half of a block: squared ReLU (arXiv:2109.08668) between two matrices."""

from mlx_gpt.backend import mx, nn
from mlx_gpt.config import ModelConfig


class MLP(nn.Module):
    """fc2(max(fc1(x), 0)^2), no bias."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, config.mlp_dim, bias=False)
        self.fc2 = nn.Linear(config.mlp_dim, config.n_embd, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(mx.square(mx.maximum(self.fc1(x), 0)))
