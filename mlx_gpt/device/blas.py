"""Loads a tuned BLAS for MLX on Linux CPUs, before MLX is loaded.

MLX's Linux CPU wheel contains the reference BLAS, which is about thirty times slower than a tuned one. The dynamic
linker resolves the `cblas_sgemm` of `libmlx.so` in the global symbol scope first. If a library that exports this
function is opened with RTLD_GLOBAL before MLX, MLX calls the function of that library instead of its own.

The OpenBLAS in NumPy's wheel is used if there is a C compiler. It exports the function under another name and with
64-bit sizes. A shim is therefore compiled once and stored in the user's cache: a shared library with a single C
function `cblas_sgemm`, which calls that OpenBLAS. Without a compiler, a tuned BLAS of the system is used. Its products
of one row may differ from those of several rows in the last bits. The server then decodes in one shape only, which is
slower for a single reader (see generation/slots.py).

`MLXGPT_BLAS=off` disables all of this. `MLXGPT_BLAS=/path/to/lib.so` loads that library instead.
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
    "libmkl_rt.so.3",
    "libmkl_rt.so.2",
    "libmkl_rt.so",
    "libblis.so.4",
    "libblis.so",
)
THREAD_SETTERS = ("openblas_set_num_threads", "scipy_openblas_set_num_threads64_", "MKL_Set_Num_Threads")
REMEDY = (
    "install a C compiler (gcc) or OpenBLAS (libopenblas0-pthread), or set MLXGPT_BLAS to a library with cblas_sgemm"
)
# The shim computes C = alpha A B + beta C, with A (m, k), B (k, n) and C (m, n). A and B may be stored
# transposed. There are two special cases for products of few rows or columns, as in decoding:
#
# * If n = 1, the shim calls sgemv, which reads the matrix once. sgemm would first copy (pack) the matrix.
# * If m <= FEW_ROWS, the shim cuts B into blocks of p columns with m p k <= UNPACKED, where p is a multiple of 16.
#   OpenBLAS multiplies such blocks with its small-matrix kernels, without packing. If p would be less than 16, B is
#   not cut. Example: m = 16 and k = 256 give p = 1000000 / 4096 = 244, rounded down to 240.
#
# A single row, m = 1, is multiplied in the same way as several rows, not with sgemv. The sums are then in the same
# order, so a sequence is decoded to the same bits alone and in a batch (see generation/slots.py).
#
# The text of SHIM is part of the name of the compiled file: a change of one character compiles it again.
SHIM = """
extern void scipy_cblas_sgemm64_(int, int, int, long long, long long, long long, float, const float *, long long,
                                 const float *, long long, float, float *, long long);
extern void scipy_cblas_sgemv64_(int order, int ta, long long, long long, float, const float *, long long,
                                 const float *, long long, float, float *, long long);
enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112, FEW_ROWS = 32, UNPACKED = 1000000 };
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    if (order == ROW_MAJOR && n == 1)
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
    """The BLAS that MLX uses on the CPU.

    Attributes:
        name: the name shown in reports.
        fast: whether it is a tuned BLAS.
        path: the library that was loaded, or "" if MLX uses its own BLAS.
    """

    name: str
    fast: bool
    path: str = ""

    def set_threads(self, count: int) -> None:
        """Sets the number of threads of one matrix product. Does nothing if the library has no function for this.

        Products that run concurrently, one on each lane, should use one thread each.
        """
        library = ctypes.CDLL(self.path) if self.path else None
        for setter in THREAD_SETTERS:
            if hasattr(library, setter):
                getattr(library, setter)(count)
                return


def preload() -> Blas:
    """Loads the best available BLAS into the global symbol scope. Must be called before `mlx.core` is imported.

    Returns:
        The BLAS that MLX will use.

    Raises:
        UserError: if MLXGPT_BLAS names a file that is not a library with a working cblas_sgemm.
    """
    requested = os.environ.get("MLXGPT_BLAS", "")
    if sys.platform != "linux":
        return Blas(name="Accelerate", fast=True)
    if requested == "off":
        return Blas(name="reference (MLXGPT_BLAS=off)", fast=False)
    if "mlx.core" in sys.modules:
        return Blas(name="reference (mlx was imported before mlx_gpt)", fast=False)
    if requested:
        if not _open(requested):
            raise UserError(
                f"MLXGPT_BLAS={requested}: no library with a working cblas_sgemm; give the path of one, or off"
            )
        return Blas(name="from MLXGPT_BLAS", fast=True, path=requested)
    try:
        shim = _open_shim()
    except OSError:  # NumPy's folder or the cache cannot be read
        shim = None
    if shim:
        return Blas(name="OpenBLAS of NumPy", fast=True, path=str(shim))
    for name in SYSTEM_LIBRARIES:
        if _open(name):
            return Blas(name=name.partition(".")[0].removeprefix("lib"), fast=True, path=name)
    return Blas(name="reference", fast=False)


def _open(name: str) -> bool:
    """Loads a library into the global symbol scope if its cblas_sgemm computes a 2 x 2 product correctly.

    Returns:
        Whether the library was loaded into the global scope.
    """
    try:
        # CDLL opens a library locally by default, so one that fails the check does not enter the global scope.
        if not _multiplies(ctypes.CDLL(name)):
            return False
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        return True
    except OSError:
        return False


def _multiplies(library: ctypes.CDLL) -> bool:
    """Whether the library's cblas_sgemm gives [[1, 2], [3, 4]] @ [[5, 6], [7, 8]] = [[19, 22], [43, 50]]."""
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
    """Loads the shim that calls NumPy's OpenBLAS. Compiles the shim first if the cache holds none that works.

    Returns:
        The path of the shim. None if NumPy has no such OpenBLAS, if there is no C compiler, or if the compiled shim
        does not work.
    """
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
    """Compiles the shim and returns whether this succeeded.

    The file is written to a temporary folder and then renamed, so that two processes can compile it at the same time.
    """
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
