"""Memory that a process gives back to the system."""

import ctypes
import subprocess
import sys

import pytest

FREED = """
import os
from mlx_gpt.device.memory import return_freed_memory
{}
bytearray(800 << 10)  # glibc serves later blocks of this size from its heap
pairs = [(bytearray(700 << 10), bytearray(4000)) for _ in range(64)]
small = [kept for _, kept in pairs]
del pairs
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_large_blocks_are_returned_when_they_are_freed():
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", FREED.format(line)]))
        for line in ("", "return_freed_memory()")
    )
    assert returned < kept - 64 * (600 << 10)
