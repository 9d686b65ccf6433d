"""The case: the input that all contenders of the benchmark share.

A contender is one implementation that is measured: mlxgpt, a plain MLX loop, or PyTorch. Every contender trains the
same network from the same initial weights on the same text.

Shapes: B batch, T time, N tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_gpt.config.schema import Config

LEARNING_RATE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Settings, weights and data that all contenders share. The arrays are NumPy arrays, not those of a framework.

    Attributes:
        config: The settings.
        vocab_size: Number of token ids.
        weights: Initial weights by name, float32.
        ids: Token ids of the training text, (N,).
        inputs, targets: Token ids of the first batch, (B, T) each. The losses on it, or on its first sequences, must
            agree.
    """

    config: Config
    vocab_size: int
    weights: dict[str, np.ndarray]
    ids: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray

    def ours_alone(self) -> list[str]:
        """Returns the settings of this case that only mlxgpt supports, such as "optimizer.name=muon".

        The other contenders implement randyGPT's network and AdamW. They cannot run a case for which this list is not
        empty.
        """
        name = self.config.optimizer.name
        return self.config.model.extensions() + [f"optimizer.name={name}"] * (name != "adamw")

    @property
    def prompt(self) -> int:
        """The number of prompt tokens when decoding is measured."""
        return min(16, self.config.model.block_size // 2)

    @property
    def written(self) -> int:
        """The number of tokens generated when decoding is measured. With the prompt, they fit into the context."""
        return min(200, self.config.model.block_size - self.prompt)

    def save(self, path: Path) -> None:
        """Writes the case to an .npz file, from which the processes of the contenders load it."""
        settings = json.dumps({"config": self.config.to_dict(), "vocab_size": self.vocab_size})
        arrays = {"ids": self.ids, "inputs": self.inputs, "targets": self.targets}
        weights = {f"weight.{name}": w for name, w in self.weights.items()}
        np.savez(path, settings=np.array(settings), **arrays, **weights)

    @classmethod
    def load(cls, path: Path) -> "Case":
        """Reads a case that save() wrote."""
        with np.load(path) as file:
            settings = json.loads(str(file["settings"]))
            arrays = {name: file[name] for name in ("ids", "inputs", "targets")}
            prefix = "weight."
            weights = {name.removeprefix(prefix): file[name] for name in file.files if name.startswith(prefix)}
        return cls(config=Config.from_dict(settings.pop("config")), weights=weights, **settings, **arrays)
