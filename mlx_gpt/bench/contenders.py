"""The table of contenders."""

# Name -> the module that defines its class Contender, and arguments of that class. The tables have this order.
CONTENDERS = {
    "mlxgpt": ("mlx_gpt.bench.ours", {}),
    "torch.compile": ("mlx_gpt.bench.pytorch", {"compiled": True}),
    "PyTorch": ("mlx_gpt.bench.pytorch", {"compiled": False}),
    "plain MLX": ("mlx_gpt.bench.plain", {}),
}
