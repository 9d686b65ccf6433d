"""The benchmark: mlxgpt, a plain MLX loop and PyTorch do the same work. They run in turns, each in its own process."""

from mlx_gpt.lazy import attach

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
