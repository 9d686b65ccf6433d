"""The BLAS under MLX on Linux: found without help, equal to the reference, and off when asked."""

import json
import shutil
import subprocess
import sys

import pytest
from devices import cpu_only

pytestmark = [cpu_only("BLAS"), pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")]

CODE = """
import json, numpy as np
from mlx_gpt.device.mlx import BLAS, mx
a, b = (np.random.default_rng(s).standard_normal((70, 50), dtype=np.float32) for s in (0, 1))
row, column = a[:1], a[:, :1]
pairs = [(a, b.T), (a.T, b), (row, b.T), (column.T, b), (column.T, a)]
pairs += [(a, row.T), (b.T, column), (row, row.T), (column, row)]
errors = []
for x, y in pairs:
    for plain in (lambda z: mx.array(z), lambda z: mx.array(np.ascontiguousarray(z.T)).T):
        errors.append(np.abs(np.array(plain(x) @ mx.array(y)) - x.astype(np.float64) @ y).max())
        errors.append(np.abs(np.array(mx.array(x) @ plain(y)) - x.astype(np.float64) @ y).max())
print(json.dumps({"name": BLAS.name, "fast": BLAS.fast, "path": BLAS.path, "error": float(max(errors))}))
"""


def run(tmp_path, **env):
    path = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), **env}
    return subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, env=path)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A home folder, and what a first process there found and kept in its cache."""
    home = tmp_path_factory.mktemp("home")
    return home, json.loads(run(home).stdout)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_fast_blas_is_found_and_multiplies_rightly(found):
    home, first = found
    assert first["fast"] and first["error"] < 1e-4
    assert json.loads(run(home).stdout) == first  # from the cache


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_broken_cached_shim_is_built_anew(found):
    home, before = found
    with open(before["path"], "wb") as f:
        f.write(b"not a library")
    assert json.loads(run(home).stdout) == before


def test_a_cache_that_cannot_be_used_is_done_without(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    found = json.loads(run(tmp_path).stdout)
    assert found["error"] < 1e-4


def test_the_switch_turns_it_off(found):
    home, _ = found
    off = json.loads(run(home, MLXGPT_BLAS="off").stdout)
    assert not off["fast"] and off["error"] < 1e-4


def test_without_a_compiler_there_is_the_reference(tmp_path):
    found = json.loads(run(tmp_path, PATH="/nonexistent").stdout)
    assert found["error"] < 1e-4
    assert found["fast"] == (str(tmp_path) not in found["path"] and bool(found["path"]))


def test_a_wish_that_cannot_be_met_is_an_error(tmp_path):
    assert "MLXGPT_BLAS=/no/such.so: no library" in run(tmp_path, MLXGPT_BLAS="/no/such.so").stderr
