"""Groups of several processes on one or more machines, over `mx.distributed`."""

from mlx_gpt.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, {"Place": "elastic", "wait_for_place": "rendezvous"})
