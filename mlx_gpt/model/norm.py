"""RMSNorm (arXiv:1910.07467), without weights or with one a channel."""

from mlx_gpt.device.mlx import mx, nn
from mlx_gpt.model.specs import Constant, Specs, Weight

RMS_EPS = 1e-5


def rms_norm(x: mx.array, weight: mx.array | None = None) -> mx.array:
    """x / sqrt(mean(x^2) + eps) over the last axis, by channel times `weight`; statistics in float32."""
    return mx.fast.rms_norm(x, weight, RMS_EPS)


class Norm(nn.Module):
    """rms_norm(), with a weight a channel where `learned`."""

    def __init__(self, width: int, learned: bool):
        super().__init__()
        if learned:
            self.weight = mx.ones(width)

    @staticmethod
    def specs(width: int, learned: bool) -> Specs:
        return {"weight": Weight((width,), Constant(1.0), "gain")} if learned else {}

    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.get("weight"))
