"""Statistics of ternary weights: the share of zeros, and the share of trits that changed since the last evaluation."""

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.model.packing import trits_of


class Trits:
    """The zeros and the changes of the trits of a ternary network, in total and for each layer.

    Between evaluations, the trits of the last one are kept in one byte each. They are not part of a checkpoint, so the
    first evaluation of a process has no changes. See train/statistics.py.
    """

    def __init__(self, config: ModelConfig):
        self._config = config
        self._last: dict[str, mx.array] = {}

    @staticmethod
    def applies(config: ModelConfig) -> bool:
        return config.linear == "ternary"

    def __call__(self, weights: dict[str, mx.array]) -> dict[str, float]:
        """Returns `zeros` and `changed`, and both for each layer, as in `layers.0.zeros`."""
        counts: dict[str, dict[str, int]] = {}
        for name, values, _ in trits_of(self._config, weights):
            trits, last = values.astype(mx.int8), self._last.get(name)
            found = {"weights": trits.size, "zeros": (trits == 0).sum().item()}
            if last is not None:
                found["changed"] = (trits != last).sum().item()
            self._last[name] = trits
            for part in ("", ".".join(name.split(".")[:2]) + "."):
                sums = counts.setdefault(part, dict.fromkeys(found, 0))
                counts[part] = {key: sums[key] + count for key, count in found.items()}
        return {
            f"{part}{key}": count / sums["weights"]
            for part, sums in counts.items()
            for key, count in sums.items()
            if key != "weights"
        }
