"""The checkout, and a model small enough to train in a test."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY_SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 2, "block_size": 64}
TINY = {f"model.{k}": v for k, v in TINY_SHAPE.items()}
