"""The same work done by us, by a plain MLX loop and by PyTorch, each in a process of its own, in turns."""

from mlx_gpt.lazy import attach

# Contender -> the module of its class Contender, and that class's arguments; in the order of the tables.
CONTENDERS = {
    "mlxgpt": ("mlx_gpt.bench.ours", {}),
    "torch.compile": ("mlx_gpt.bench.pytorch", {"compiled": True}),
    "PyTorch": ("mlx_gpt.bench.pytorch", {"compiled": False}),
    "plain MLX": ("mlx_gpt.bench.plain", {}),
}

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "make_case": "record",
        "measure": "record",
        "write_record": "record",
        "tune": "tuner",
        "machine": "machine",
        "report": "report",
        "text": "text",
    },
)
