"""Packages that load a module only when one of its names is first used.

The tests check that importing them loads nothing else, and that all their names can be used.
"""

import importlib
import pkgutil
import subprocess
import sys

import pytest
from constants import ROOT

# The packages that use mlx_gpt.lazy.
LAZY = ["api", "bench", "data", "device", "generation", "model", "run", "watch"]
# Python code: the slow or avoidable modules that have been imported.
HEAVY = "[m for m in ('mlx', 'mlx.core', 'numpy', 'rich', 'tomllib', 'dataclasses') if m in sys.modules]"


def python(code: str) -> str:
    """Runs the code in a new interpreter and returns its stdout."""
    done = subprocess.run([sys.executable, "-c", f"import os, sys; {code}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_and_changes_nothing():
    code = "before = dict(os.environ); import mlx_gpt; from mlx_gpt import " + ", ".join(LAZY)
    assert python(f"{code}; print({HEAVY}, before == dict(os.environ))") == "[] True"


@pytest.mark.parametrize("name", LAZY)
def test_every_name_of_a_lazy_package_is_there(name):
    package = importlib.import_module(f"mlx_gpt.{name}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    for public in package.__all__:
        value = getattr(package, public)
        assert (public in modules) == (getattr(value, "__name__", "") == f"mlx_gpt.{name}.{public}")
    assert dir(package) == package.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


@pytest.mark.parametrize("first", ["mlx_gpt.train", "import mlx_gpt.train.reports", "from mlx_gpt.train import step"])
def test_train_is_the_function_though_a_package_has_its_name(first):
    code = f"import mlx_gpt; {first}; from mlx_gpt.train.reports import StopReport"
    assert python(f"{code}; print(mlx_gpt.train.__module__)") == "mlx_gpt.api.training"


def test_the_help_of_the_command_imports_no_command():
    code = "sys.argv = ['mlxgpt', '--help']; from mlx_gpt.cli.main import main; import contextlib, io; "
    code += "out = contextlib.redirect_stdout(io.StringIO()); out.__enter__()\n"
    code += "try: main()\nexcept SystemExit as e: assert e.code == 0\n"
    code += "out.__exit__(None, None, None)\n"
    code += "print(sorted(m for m in sys.modules if m.startswith('mlx_gpt') or m in ('mlx', 'numpy', 'tomllib')))"
    assert python(code) == str(
        ["mlx_gpt", "mlx_gpt.cli", "mlx_gpt.cli.lazy_group", "mlx_gpt.cli.main", "mlx_gpt.errors", "mlx_gpt.lazy"]
        + ["mlx_gpt.version"]
    )
