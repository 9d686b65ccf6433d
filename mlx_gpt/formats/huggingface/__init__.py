"""Folders that transformers and mlx-lm load, written and read."""
