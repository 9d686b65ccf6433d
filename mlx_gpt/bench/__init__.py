"""The same work done by us, by a plain MLX loop and by PyTorch, each in a process of its own, in turns."""
