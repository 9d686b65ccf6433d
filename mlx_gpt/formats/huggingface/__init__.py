"""Folders that transformers and mlx-lm load, and theirs read back."""
