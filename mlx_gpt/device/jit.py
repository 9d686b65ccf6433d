"""Vectorized CPU kernels for MLX on Linux, set up before MLX is loaded.

MLX compiles its fused CPU kernels at run time. It calls the first `g++` on the PATH, without flags for this CPU. This
module writes a wrapper script named `g++` and puts it first on the PATH. The wrapper calls the compiler with flags that
let it vectorize the same loops. Measured: exp is 40x faster, squared ReLU 15x, AdamW 4x. The wrapper also makes the
compiler use a precompiled version of MLX's header, so a kernel compiles in 0.1 s instead of 0.7 s.

MLX stores compiled kernels under TMPDIR and reuses a kernel of the same name. The system's TMPDIR may hold kernels that
were compiled without the flags. TMPDIR is therefore set to a folder of its own in the user's cache.

`MLXGPT_KERNELS=off` disables all of this.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_gpt.paths import cache_dir

# None of these flags reorders arithmetic or assumes finite numbers, as -ffast-math would. -march=native lets the
# compiler contract a multiplication and an addition, which changes rounding.
FLAGS = (
    "-march=native",
    "-fno-math-errno",  # sqrt need not set errno, so it becomes a single instruction
    "-fno-trapping-math",  # both branches of a condition may be computed, so a loop with a condition can be vectorized
    "-finline-limit=4000",  # exp is inlined into the loop
)
# The flags that MLX itself passes. g++ uses a precompiled header only if it was compiled with the same flags.
BY_MLX = ("-std=c++17", "-O3", "-fPIC")
HEADER = Path("mlx/backend/cpu/compiled_preamble.h")


def vectorize() -> bool:
    """Installs the wrapper if the cache has none, and sets PATH and TMPDIR. Must be called before MLX is loaded.

    Returns:
        True if PATH and TMPDIR were set. False on systems other than Linux, without g++, with MLXGPT_KERNELS=off, or if
        the installation fails.
    """
    compiler = shutil.which("g++")
    if sys.platform != "linux" or os.environ.get("MLXGPT_KERNELS") == "off" or compiler is None:
        return False
    include = Path(importlib.util.find_spec("mlx").submodule_search_locations[0], "include")
    folder = cache_dir() / f"kernels-{_fingerprint(compiler, include)}"
    wrapper = folder / "bin" / "g++"
    try:
        if not wrapper.exists():
            _install(wrapper, compiler, include)
    except (OSError, subprocess.SubprocessError):
        return False
    tempfile.gettempdir()  # Python caches its choice here, so its own temporary files do not move with TMPDIR
    os.environ["TMPDIR"] = str(folder)
    os.environ["PATH"] = f"{wrapper.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return True


def _fingerprint(compiler: str, include: Path) -> str:
    """Returns a hash of the compiler, the flags, MLX's header and the CPU.

    It is part of the folder's name, because different machines may share a home folder and thus the cache.
    """
    cpu = [line for line in cpuinfo() if line.startswith(("model name", "flags", "Features"))]
    files = [(str(p), p.stat().st_mtime_ns) for p in (Path(compiler).resolve(), include / HEADER) if p.exists()]
    text = f"{files} {FLAGS} {platform.machine()} {sorted(set(cpu))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cpuinfo() -> list[str]:
    """Returns the lines of /proc/cpuinfo, or [] on systems without this file."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _install(wrapper: Path, compiler: str, include: Path) -> None:
    """Compiles the header and writes the wrapper script.

    Both files are made in a temporary folder and then renamed, so that two processes can install at the same time. The
    wrapper is renamed last: if it exists, the installation is complete.

    Raises:
        OSError: The cache cannot be written.
        subprocess.SubprocessError: The compiler failed or took more than 60 s.
    """
    # The wrapper passes -I FOLDER before MLX's own -I. In each -I folder g++ looks for HEADER.gch, then for HEADER.
    # Therefore it finds the precompiled header first.
    folder, header = wrapper.parent, wrapper.parent / f"{HEADER}.gch"
    header.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        compiled, script = Path(new, "header.gch"), Path(new, "g++")
        source = ["-I", include, "-x", "c++-header", include / HEADER, "-o", compiled]
        subprocess.run([compiler, *FLAGS, *BY_MLX, *source], check=True, capture_output=True, timeout=60)
        script.write_text(f'#!/bin/sh\nexec "{compiler}" {" ".join(FLAGS)} -I "{folder}" "$@"\n')
        script.chmod(0o755)
        os.replace(compiled, header)
        os.replace(script, wrapper)
