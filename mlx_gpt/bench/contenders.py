"""The table of contenders."""

# Contender -> the module of its class Contender, and that class's arguments; in the order of the tables.
CONTENDERS = {
    "mlxgpt": ("mlx_gpt.bench.ours", {}),
    "torch.compile": ("mlx_gpt.bench.pytorch", {"compiled": True}),
    "PyTorch": ("mlx_gpt.bench.pytorch", {"compiled": False}),
    "plain MLX": ("mlx_gpt.bench.plain", {}),
}
