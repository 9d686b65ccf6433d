"""Statistics of mixed residual streams: how differently they are written, and how much they are mixed."""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.mhc import MixedStreams


class Streams:
    """How the units of a network with mixed streams treat them, as means over the units. See train/statistics.py."""

    def __init__(self, config: ModelConfig):
        self._config = config

    @staticmethod
    def applies(config: ModelConfig) -> bool:
        return config.residual == "mhc"

    def __call__(self, weights: dict[str, mx.array]) -> dict[str, float]:
        """Returns `streams.spread` and `streams.mixing`.

        `streams.spread` is the difference between the largest and the smallest weight with which a unit writes to a
        stream, as a share of the largest possible one. Streams that all units write alike do not differ.
        `streams.mixing` is the share of a stream that a unit takes from other streams: 0 without mixing.
        """
        spreads, mixing = [], []
        for unit, name in enumerate(name for name in sorted(weights) if name.endswith(".post")):
            part = MixedStreams(self._config, unit)
            part.mix, part.post = (weights[name.removesuffix("post") + key] for key in ("mix", "post"))
            writes = mx.sigmoid(part.post)
            spreads.append(writes.max() - writes.min())
            mixing.append(1 - mx.diag(part.matrix()).mean())
        found = {"streams.spread": mx.stack(spreads).mean(), "streams.mixing": mx.stack(mixing).mean()}
        return {name: value.item() for name, value in found.items()}
