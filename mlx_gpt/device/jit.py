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
from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.paths import cache_dir

# None of these flags reorders arithmetic or assumes finite numbers, as -ffast-math would. Only -ffp-contract affects
# rounding.
#
# -ffp-contract=off makes runs equal bit for bit. By default, g++ contracts a multiplication and an addition to one
# instruction, which rounds once. It compiles several versions of a loop: a vectorized one, one for the remaining
# elements, and one for an output that overwrites an input. It contracts each of them in its own way. Example: in Lion's
# w * c - lr * s, the version for separate arrays does not round w * c, and the version that overwrites w does. MLX
# overwrites an input if nothing else refers to it at that moment, which depends on how far its other threads are.
FLAGS = (
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",  # sqrt need not set errno, so it becomes a single instruction
    "-fno-trapping-math",  # both branches of a condition may be computed, so a loop with a condition can be vectorized
    "-finline-limit=4000",  # exp is inlined into the loop
)
# The flags that MLX itself passes. g++ uses a precompiled header only if it was compiled with the same flags.
BY_MLX = ("-std=c++17", "-O3", "-fPIC")
# The wrapper. Ctrl-C reaches every process of the terminal. It must not end a compilation, without which the training
# process cannot finish its step and save.
SCRIPT = """#!/bin/sh
trap '' INT TERM HUP
exec "{compiler}" {flags} -I "{folder}" "$@"
"""
HEADER = Path("mlx/backend/cpu/compiled_preamble.h")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """The fused CPU kernels that MLX compiles.

    Attributes:
        vectorized: Whether they are compiled with FLAGS.
        reason: Why not; "" if they are.
    """

    vectorized: bool
    reason: str = ""


def vectorize() -> Kernels:
    """Installs the wrapper if the cache has none, and sets PATH and TMPDIR. Must be called before MLX is loaded.

    Returns:
        Whether PATH and TMPDIR were set. They are not set on systems other than Linux, without g++, with
        MLXGPT_KERNELS=off, or if the installation fails.
    """
    if sys.platform != "linux":
        return Kernels(vectorized=False, reason=f"not needed on {sys.platform}")
    if os.environ.get("MLXGPT_KERNELS") == "off":
        return Kernels(vectorized=False, reason="MLXGPT_KERNELS=off")
    compiler, include = shutil.which("g++"), _include_folder()
    if compiler is None:
        return Kernels(vectorized=False, reason="no g++ on the PATH; install g++")
    if include is None:
        return Kernels(vectorized=False, reason=f"MLX's header {HEADER} is missing; install mlx again")
    folder = cache_dir() / f"kernels-{_fingerprint(compiler, include)}"
    wrapper = folder / "bin" / "g++"
    try:
        if not wrapper.exists():
            _install(wrapper, compiler, include)
    except (OSError, subprocess.SubprocessError) as error:
        return Kernels(vectorized=False, reason=_describe(error))
    tempfile.gettempdir()  # Python caches its choice here, so its own temporary files do not move with TMPDIR
    os.environ["TMPDIR"] = str(folder)
    os.environ["PATH"] = f"{wrapper.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return Kernels(vectorized=True)


def _include_folder() -> Path | None:
    """Returns MLX's folder of C++ headers, or None if no folder of the package has HEADER.

    MLX is a namespace package, so every folder named mlx on sys.path is a part of it. In the working folder, that can
    be a folder that has nothing to do with MLX, or the kernels that MLX has stored under TMPDIR.
    """
    spec = importlib.util.find_spec("mlx")
    folders = [Path(part, "include") for part in spec.submodule_search_locations] if spec else []
    return next((folder for folder in folders if (folder / HEADER).is_file()), None)


def _describe(error: OSError | subprocess.SubprocessError) -> str:
    """Returns one line that tells why the installation failed and what to do."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}; set XDG_CACHE_HOME to a folder you can write to"
    # CalledProcessError and TimeoutExpired have the attribute stderr.
    message = (error.stderr or b"").decode(errors="replace").splitlines() or ["no message"]
    return f"g++ cannot compile MLX's header with {' '.join(FLAGS)}: {message[0]}; install another version of g++"


def _fingerprint(compiler: str, include: Path) -> str:
    """Returns a hash of the compiler, the flags, MLX's header and the CPU.

    It is part of the folder's name, because different machines may share a home folder and thus the cache.
    """
    cpu = [line for line in cpuinfo() if line.startswith(("model name", "flags", "Features"))]
    files = [(str(p), p.stat().st_mtime_ns) for p in (Path(compiler).resolve(), include / HEADER)]
    text = f"{files} {FLAGS} {SCRIPT} {platform.machine()} {sorted(set(cpu))}"
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
        script.write_text(SCRIPT.format(compiler=compiler, flags=" ".join(FLAGS), folder=folder))
        script.chmod(0o755)
        os.replace(compiled, header)
        os.replace(script, wrapper)
