"""The machine that computes: MLX, its streams, and what makes it fast."""
