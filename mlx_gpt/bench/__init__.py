"""The same work done by us, by a plain MLX loop and by PyTorch, each in a process of its own, in turns."""

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
