"""The device: imports and configures MLX, divides work among CPU cores, and describes the machine."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "mlx": "mlx",
        "can_compile": "mlx",
        "peak_memory": "mlx",
        "return_freed_memory": "memory",
        "device_report": "report",
        "matmul_rate": "report",
        "numpy_matmul_rate": "report",
        "weaknesses": "report",
    },
)
