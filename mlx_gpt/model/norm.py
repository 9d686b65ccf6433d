"""RMSNorm (arXiv:1910.07467), with or without a learned weight for each channel."""

from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Constant, Specs, Weight


def rms_norm(x: mx.array, eps: float, weight: mx.array | None = None) -> mx.array:
    """Returns x / sqrt(mean(x^2) + eps) * weight. The mean is over the last axis and is computed in float32.

    Args:
        x: (..., C).
        eps: A small number above 0.
        weight: (C,), or None for no multiplication.
    """
    return mx.fast.rms_norm(x, weight, eps)


class Norm(nn.Module):
    """RMSNorm over the last axis, of size `width`. If `learned`, it has a weight for each channel."""

    def __init__(self, width: int, learned: bool, eps: float):
        super().__init__()
        self.eps = eps
        if learned:
            self.weight = mx.ones(width)

    @staticmethod
    def specs(width: int, learned: bool) -> Specs:
        return {"weight": Weight((width,), Constant(1.0), "gain")} if learned else {}

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.eps, self.get("weight"))
