"""Writes and reads the folders that Hugging Face transformers and mlx-lm load."""
