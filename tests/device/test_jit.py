"""Vectorized kernels on Linux: made without help, the same numbers as MLX's own, and off when asked."""

import json
import shutil
import subprocess
import sys

import pytest
from devices import cpu_only

pytestmark = [
    cpu_only("vectorized kernels"),
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++"),
]

CODE = """
import json, os, tempfile, numpy as np
from mlx_gpt.device.mlx import VECTORIZED, mx
x = np.concatenate([np.linspace(-100, 88, 4001), [np.inf, -np.inf, np.nan, 0.0]]).astype(np.float32)
def kernels(m, x):
    return m.exp(x * 1), m.sqrt(m.abs(x) * 2), m.where(m.isfinite(x * 1), x * 2, -7), m.maximum(x * 2, 0)
found = mx.compile(lambda x: kernels(mx, x))(mx.array(x))
with np.errstate(all="ignore"):
    expected = kernels(np, x.astype(np.float64))
same = all(np.allclose(a, b, rtol=1e-5, atol=1e-30, equal_nan=True) for a, b in zip(found, expected))
print(json.dumps({"vectorized": VECTORIZED, "same": bool(same), "tmp": tempfile.gettempdir()}))
"""


def run(tmp_path, **env):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), **env}
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kernels(tmp_path):
    return list((tmp_path / "cache").rglob("kernels-*/mlx/**/*.so"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home folder, and what a first process there found, whose kernels are in its cache."""
    home = tmp_path_factory.mktemp("home")
    return home, run(home)


def test_kernels_are_vectorized_exact_and_in_the_users_cache(made):
    home, first = made
    assert run(home) == first and first["vectorized"] and first["same"]
    assert kernels(home)
    assert str(home) not in first["tmp"]  # Python's own temporary files stay where they were


def test_the_switch_leaves_mlx_as_it_is(tmp_path):
    found = run(tmp_path, MLXGPT_KERNELS="off")
    assert not found["vectorized"] and found["same"] and not kernels(tmp_path)


@pytest.mark.parametrize("broken", ["cache", "compiler"])
def test_what_cannot_be_used_is_done_without(tmp_path, broken):
    """A cache that is no folder; a compiler that knows none of our flags but serves MLX."""
    if broken == "cache":
        (tmp_path / "cache").write_text("a file where the folder should be")
        found = run(tmp_path)
    else:
        (tmp_path / "bin").mkdir()
        plain = tmp_path / "bin" / "g++"
        plain.write_text('#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nexec /usr/bin/g++ "$@"\n')
        plain.chmod(0o755)
        found = run(tmp_path, PATH=f"{plain.parent}:/usr/bin:/bin")
    assert not found["vectorized"] and found["same"]


def test_an_interrupted_install_is_finished(made):
    home, _ = made
    wrapper = next((home / "cache").rglob("kernels-*/bin/g++"))
    wrapper.unlink()
    assert run(home)["vectorized"] and wrapper.exists()
