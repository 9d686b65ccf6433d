"""Vectorised CPU kernels for MLX on Linux, arranged before MLX is loaded.

MLX compiles fused kernels by calling the `g++` it finds on the PATH, for the plainest CPU of the architecture. A
wrapper of that name, put first on the PATH, lets the same loops use this CPU's vectors (exp 40x faster, squared ReLU
15x, AdamW 4x) and compiles MLX's header once for all of them (a kernel in 0.1 s and not 0.7). The kernels go to a
folder of their own in the user's cache: MLX's, under TMPDIR, holds slow ones of the same names.

`MLXGPT_KERNELS=off` leaves MLX as it is.
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

# None of them reorders arithmetic: infinities and NaNs keep their meaning.
FLAGS = (
    "-march=native",
    "-fno-math-errno",  # a square root that need not report
    "-fno-trapping-math",  # a choice may compute both sides
    "-finline-limit=4000",  # exp becomes part of the loop
)
BY_MLX = ("-std=c++17", "-O3", "-fPIC")  # what MLX passes itself; a compiled header must be made with the same
HEADER = Path("mlx/backend/cpu/compiled_preamble.h")


def vectorise() -> bool:
    """Puts the wrapper and the kernel folder in place; False where MLX's own are used."""
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
    tempfile.gettempdir()  # Python's own choice is made once; it stays where it was
    os.environ["TMPDIR"] = str(folder)
    os.environ["PATH"] = f"{wrapper.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return True


def _fingerprint(compiler: str, include: Path) -> str:
    """Of compiler, flags, MLX's headers and the CPU: a home folder may be shared by unlike machines."""
    cpu = [line for line in cpuinfo() if line.startswith(("model name", "flags", "Features"))]
    files = [(str(p), p.stat().st_mtime_ns) for p in (Path(compiler).resolve(), include / HEADER) if p.exists()]
    text = f"{files} {FLAGS} {platform.machine()} {sorted(set(cpu))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cpuinfo() -> list[str]:
    """What Linux says of its CPUs, line by line; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _install(wrapper: Path, compiler: str, include: Path) -> None:
    """Compiles the header and writes the wrapper, beside and renamed: two processes may start at once."""
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
