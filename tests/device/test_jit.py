"""Vectorized kernels on Linux: made without help, the same numbers as MLX's own, and off when asked."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from constants import ROOT
from devices import cpu_only

pytestmark = [
    cpu_only("vectorized kernels"),
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++"),
]

CODE = """
import json, os, tempfile, numpy as np
from mlx_gpt.device.mlx import KERNELS, mx
from mlx_gpt.device.report import weaknesses
x = np.concatenate([np.linspace(-100, 88, 4001), [np.inf, -np.inf, np.nan, 0.0]]).astype(np.float32)
def kernels(m, x):
    return m.exp(x * 1), m.sqrt(m.abs(x) * 2), m.where(m.isfinite(x * 1), x * 2, -7), m.maximum(x * 2, 0)
found = mx.compile(lambda x: kernels(mx, x))(mx.array(x))
with np.errstate(all="ignore"):
    expected = kernels(np, x.astype(np.float64))
same = all(np.allclose(a, b, rtol=1e-5, atol=1e-30, equal_nan=True) for a, b in zip(found, expected))
facts = {"vectorized": KERNELS.vectorized, "advice": weaknesses()}
print(json.dumps(facts | {"same": bool(same), "tmp": tempfile.gettempdir()}))
"""

# A compiler that does not know one of our flags.
REFUSING = """#!/bin/sh
case "$*" in *native*) echo "unknown option -march=native" >&2; exit 1;; esac
exec /usr/bin/g++ "$@"
"""


def run(tmp_path, **env):
    own = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    env = own | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | env
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
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
    assert not any("kernels" in line for line in first["advice"])
    assert kernels(home)
    assert str(home) not in first["tmp"]  # Python's own temporary files stay where they were


def test_the_switch_leaves_mlx_as_it_is(tmp_path):
    found = run(tmp_path, MLXGPT_KERNELS="off")
    assert not found["vectorized"] and found["same"] and not kernels(tmp_path)
    assert any("MLXGPT_KERNELS=off" in line for line in found["advice"])


def test_a_folder_named_mlx_beside_the_script_does_not_hide_the_header(made):
    """MLX is a namespace package: such a folder is a part of it, and the first one."""
    home, first = made
    (home / "mlx" / "include").mkdir(parents=True)
    assert run(home) == first


@pytest.mark.parametrize("broken, reason", [("cache", "XDG_CACHE_HOME"), ("compiler", "unknown option -march=native")])
def test_what_cannot_be_used_is_done_without_and_the_reason_is_reported(tmp_path, broken, reason):
    """A cache that is no folder; a compiler that knows none of our flags but serves MLX."""
    if broken == "cache":
        (tmp_path / "cache").write_text("a file where the folder should be")
        found = run(tmp_path)
    else:
        (tmp_path / "bin").mkdir()
        plain = tmp_path / "bin" / "g++"
        plain.write_text(REFUSING)
        plain.chmod(0o755)
        found = run(tmp_path, PATH=f"{plain.parent}:/usr/bin:/bin")
    assert not found["vectorized"] and found["same"]
    assert any("not vectorized" in line and reason in line for line in found["advice"])


def test_an_interrupted_install_is_finished(made):
    home, _ = made
    wrapper = next((home / "cache").rglob("kernels-*/bin/g++"))
    wrapper.unlink()
    assert run(home)["vectorized"] and wrapper.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_does_not_end_a_compilation(made, number):
    """As Ctrl-C does. The process that waits for the compiler ignores it here, as the training process does."""
    home, _ = made
    [wrapper] = (home / "cache").rglob("kernels-*/bin/g++")
    source = "int main() { return 0; }"
    code = f"""
import os, signal, subprocess
signal.signal({int(number)}, lambda *_: None)
child = subprocess.Popen([{str(wrapper)!r}, "-x", "c++", "-", "-o", {str(home / "out")!r}], stdin=subprocess.PIPE)
while not subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True).stdout:  # cc1plus
    pass
os.killpg(0, {int(number)})
child.communicate({source!r}.encode())
print(child.returncode)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert done.stdout == "0\n", done.stderr
