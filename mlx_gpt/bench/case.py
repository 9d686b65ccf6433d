"""What every contender computes: one model, its first weights, one text, one first batch.

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
    """`inputs` and `targets` (B, T) are the batch whose loss all must agree on."""

    config: Config
    vocab_size: int
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray

    def ours_alone(self) -> list[str]:
        """The settings that no other contender has: they know randyGPT's network and AdamW."""
        name = self.config.optimizer.name
        return self.config.model.extensions() + [f"optimizer.name={name}"] * (name != "adamw")

    @property
    def prompt(self) -> int:
        """Tokens read before those that are written."""
        return min(16, self.config.model.block_size // 2)

    @property
    def written(self) -> int:
        """Tokens written where decoding is timed: no more than the context holds."""
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
