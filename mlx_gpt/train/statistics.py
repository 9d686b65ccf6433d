"""Statistics of the weights of a network, computed at each evaluation of a run.

To add a statistic, write a class in its own file and add it to STATISTICS.
"""

from typing import Protocol

from mlx_gpt.config.schema import ModelConfig
from mlx_gpt.device.mlx import mx
from mlx_gpt.train.streams import Streams
from mlx_gpt.train.trits import Trits


class Statistic(Protocol):
    """Numbers that describe the weights. An object may keep values from one evaluation to the next.

    Args:
        config: The settings of [model].
    """

    def __init__(self, config: ModelConfig): ...

    @staticmethod
    def applies(config: ModelConfig) -> bool:
        """Whether networks of these settings have this statistic."""
        ...

    def __call__(self, weights: dict[str, mx.array]) -> dict[str, float]:
        """Computes the statistic.

        Args:
            weights: The trained weights by name. They must not be changed or kept.

        Returns:
            Shares, numbers from 0 to 1, by names that no field of EvalReport has. Names with a dot are shown in
            metrics.jsonl only, the others also on the terminal.
        """
        ...


STATISTICS: tuple[type[Statistic], ...] = (Trits, Streams)


class Statistics:
    """All statistics of a network. A network that has none computes nothing.

    Args:
        config: The settings of [model].
    """

    def __init__(self, config: ModelConfig):
        self._parts = [statistic(config) for statistic in STATISTICS if statistic.applies(config)]

    def __call__(self, weights: dict[str, mx.array]) -> dict[str, float]:
        """Returns the values of all statistics of these weights by name."""
        return {name: value for part in self._parts for name, value in part(weights).items()}
