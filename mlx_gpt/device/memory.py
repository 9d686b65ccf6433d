"""Limits of the memory that MLX keeps on Metal, and that the C library keeps on Linux."""

import ctypes

from mlx_gpt.device.mlx import kind, mx

LARGE_BLOCK = 256 << 10  # bytes


def limit_memory() -> None:
    """Sets the limits that memory_limits() returns. Does nothing except on Metal."""
    setters = {"wired_limit": mx.set_wired_limit, "cache_limit": mx.set_cache_limit}
    for name, size in memory_limits().items():
        setters[name](size)


def return_freed_memory() -> None:
    """Makes glibc return large blocks of memory to the system when they are freed. Does nothing elsewhere.

    By default, glibc places blocks of up to 32 MiB between small ones in one of many arenas, where a freed block stays
    with the process. A server whose threads read requests of different sizes would grow for hours. Call this before
    threads are started.
    """
    mmap_threshold, arena_max = -3, -8  # the parameters M_MMAP_THRESHOLD and M_ARENA_MAX of mallopt(3)
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(mmap_threshold, LARGE_BLOCK)
        mallopt(arena_max, 2)


def memory_limits() -> dict[str, int]:
    """Returns the limits for this device in bytes, by name; {} except on Metal. They are not measured.

    Both depend on the working set that Metal recommends, the most memory that a GPU can use without a loss of speed.

    * "wired_limit" is the working set. Wired memory stays resident: macOS does not compress or swap out weights while
      other programs need memory. MLX's default is 0. macOS before version 15 ignores the limit.
    * "cache_limit" is half of the working set. MLX keeps freed buffers for later arrays. Its default limit exceeds the
      working set, so buffers of evaluations and samples could displace the memory of other programs.
    """
    working_set = mx.device_info().get("max_recommended_working_set_size", 0) if kind() == "metal" else 0
    return {"wired_limit": working_set, "cache_limit": working_set // 2} if working_set else {}
