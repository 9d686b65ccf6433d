"""A fast matrix product for MLX on Linux CPUs, found before MLX is loaded.

MLX's Linux wheel carries the reference BLAS, some thirty times slower than a tuned one. Its `libmlx.so` takes
`cblas_sgemm` from the global symbol scope first, so a library that exports it and is opened with RTLD_GLOBAL
beforehand replaces it. NumPy's wheel carries OpenBLAS under another name and with 64-bit sizes; a C shim of one
function, compiled once into the user's cache, gives it the name MLX looks for.

`MLXGPT_BLAS=off` turns all of this off; `MLXGPT_BLAS=/path/to/lib.so` opens that library instead.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.errors import UserError
from mlx_gpt.paths import cache_dir

SYSTEM_LIBRARIES = (
    "libopenblas.so.0",
    "libopenblas.so",
    "libmkl_rt.so.2",
    "libmkl_rt.so",
    "libblis.so.4",
    "libblis.so",
)
THREAD_SETTERS = ("openblas_set_num_threads", "scipy_openblas_set_num_threads64_", "MKL_Set_Num_Threads")
CURE = "install a C compiler (gcc) or OpenBLAS (libopenblas0-pthread), or set MLXGPT_BLAS to a library with cblas_sgemm"
SHIM = """
extern void scipy_cblas_sgemm64_(int, int, int, long long, long long, long long, float, const float *, long long,
                                 const float *, long long, float, float *, long long);
extern void scipy_cblas_sgemv64_(int order, int ta, long long, long long, float, const float *, long long,
                                 const float *, long long, float, float *, long long);
enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112, FEW_ROWS = 32, UNPACKED = 1000000 };
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    if (order == ROW_MAJOR && m == 1) /* a row times a matrix: reads the matrix once and packs nothing */
        scipy_cblas_sgemv64_(order, tb == PLAIN ? TRANSPOSED : PLAIN, tb == PLAIN ? k : n, tb == PLAIN ? n : k,
                             alpha, b, ldb, a, ta == PLAIN ? 1 : lda, beta, c, 1);
    else if (order == ROW_MAJOR && n == 1)
        scipy_cblas_sgemv64_(order, ta, ta == PLAIN ? m : k, ta == PLAIN ? k : m,
                             alpha, a, lda, b, tb == PLAIN ? ldb : 1, beta, c, ldc);
    else if (order == ROW_MAJOR && m <= FEW_ROWS) { /* in pieces that OpenBLAS multiplies without packing */
        long long piece = UNPACKED / ((long long)m * k);
        piece = piece < 16 ? n : piece / 16 * 16;
        for (long long j = 0; j < n; j += piece)
            scipy_cblas_sgemm64_(order, ta, tb, m, n - j < piece ? n - j : piece, k, alpha, a, lda,
                                 b + (tb == PLAIN ? j : j * ldb), ldb, beta, c + j, ldc);
    } else
        scipy_cblas_sgemm64_(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blas:
    """Which matrix product MLX uses on the CPU: its name, whether it is a tuned one, where it came from."""

    name: str
    fast: bool
    path: str = ""

    def set_threads(self, count: int) -> None:
        """Lets one product use `count` cores, where the library says how. Products side by side want one each."""
        library = ctypes.CDLL(self.path) if self.path else None
        for setter in THREAD_SETTERS:
            if hasattr(library, setter):
                getattr(library, setter)(count)
                return


def preload() -> Blas:
    """Opens the best BLAS at hand in the global symbol scope. Call it before `mlx.core` is imported."""
    wish = os.environ.get("MLXGPT_BLAS", "")
    if sys.platform != "linux":
        return Blas(name="Accelerate", fast=True)
    if wish == "off":
        return Blas(name="reference (MLXGPT_BLAS=off)", fast=False)
    if "mlx.core" in sys.modules:
        return Blas(name="reference (mlx was imported before mlx_gpt)", fast=False)
    if wish:
        if not _open(wish):
            raise UserError(f"MLXGPT_BLAS={wish}: no library with a working cblas_sgemm; give a path, or off")
        return Blas(name="from MLXGPT_BLAS", fast=True, path=wish)
    for name in SYSTEM_LIBRARIES:
        if _open(name):
            return Blas(name=name.partition(".")[0].removeprefix("lib"), fast=True, path=name)
    try:
        shim = _open_shim()
    except OSError:  # a cache that can't be read
        shim = None
    if shim:
        return Blas(name="OpenBLAS of NumPy", fast=True, path=str(shim))
    return Blas(name="reference", fast=False)


def _open(name: str) -> bool:
    """Opens a library globally if its cblas_sgemm multiplies two 2 x 2 matrices rightly."""
    try:
        if not _multiplies(ctypes.CDLL(name)):
            return False
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        return True
    except OSError:
        return False


def _multiplies(library: ctypes.CDLL) -> bool:
    if not hasattr(library, "cblas_sgemm"):
        return False
    four = ctypes.c_float * 4
    a, b, c = four(1, 2, 3, 4), four(5, 6, 7, 8), four()
    size, real, row_major, plain = ctypes.c_int, ctypes.c_float, 101, 111
    library.cblas_sgemm(
        row_major, plain, plain, size(2), size(2), size(2), real(1), a, size(2), b, size(2), real(0), c, size(2)
    )
    return list(c) == [19, 22, 43, 50]


def _open_shim() -> Path | None:
    """Opens the shim over NumPy's OpenBLAS, compiled if need be; None without that library or a C compiler."""
    spec = importlib.util.find_spec("numpy")
    if not (spec and spec.origin):
        return None
    libraries = Path(spec.origin).parent.parent / "numpy.libs"
    openblas = next(libraries.glob("libscipy_openblas64_*.so*"), None)
    if openblas is None:
        return None
    key = hashlib.sha256(f"{SHIM}{openblas}{openblas.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    shim = cache_dir() / f"blas-{key}.so"
    if shim.exists() and _open(str(shim)):
        return shim
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return shim if compiler and _compile(compiler, openblas, shim) and _open(str(shim)) else None


def _compile(compiler: str, openblas: Path, shim: Path) -> bool:
    """Builds beside the target and renames, so that two processes can start at once."""
    try:
        shim.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=shim.parent) as folder:
            source, built = Path(folder, "shim.c"), Path(folder, "shim.so")
            source.write_text(SHIM)
            subprocess.run(
                [compiler, "-O2", "-shared", "-fPIC", "-o", built, source, openblas, f"-Wl,-rpath,{openblas.parent}"],
                check=True,
                capture_output=True,
                timeout=60,
            )
            os.replace(built, shim)
        return True
    except (OSError, subprocess.SubprocessError):
        return False
