"""The input of all contenders: a model, its initial weights, the token ids of a text, and a first batch.

Shapes: B batch, T time.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_gpt.config.schema import Config

LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Settings, weights and data that all contenders share.

    Attributes:
        config: The settings.
        vocab_size: Number of token ids.
        weights: Initial weights by name.
        ids: Token ids of the training text.
        inputs, targets: The first batch (B, T). All contenders must compute the same loss on it.
    """

    config: Config
    vocab_size: int
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray

    def ours_alone(self) -> list[str]:
        """Settings that only mlxgpt supports. The other contenders implement randyGPT's network and AdamW."""
        name = self.config.optimizer.name
        return self.config.model.extensions() + [f"optimizer.name={name}"] * (name != "adamw")

    @property
    def prompt(self) -> int:
        """Number of prompt tokens in the measurement of decoding."""
        return min(16, self.config.model.block_size // 2)

    @property
    def written(self) -> int:
        """Number of tokens decoded in that measurement. Prompt and decoded tokens fit into the context."""
        return min(200, self.config.model.block_size - self.prompt)

    def save(self, path: Path) -> None:
        settings = json.dumps({"config": self.config.to_dict(), "vocab_size": self.vocab_size})
        arrays = {"ids": self.ids, "inputs": self.inputs, "targets": self.targets}
        weights = {f"weight.{name}": w for name, w in self.weights.items()}
        np.savez(path, settings=np.array(settings), **arrays, **weights)

    @classmethod
    def load(cls, path: Path) -> "Case":
        with np.load(path) as file:
            settings = json.loads(str(file["settings"]))
            arrays = {name: file[name] for name in ("ids", "inputs", "targets")}
            prefix = "weight."
            weights = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
        return cls(config=Config.from_dict(settings.pop("config")), weights=weights, **settings, **arrays)
