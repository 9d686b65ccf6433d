"""The wheel: an installed package finds its presets, recipes and corpora without the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from constants import ROOT

CODE = """
import sys
from mlx_gpt.config.presets import names_of, resolve; from mlx_gpt.paths import resource_dir
from mlx_gpt.cli.main import cli
assert sys.argv[1] in str(resource_dir("presets")), resource_dir("presets")
print(*(len(names_of(folder)) for folder in ("presets", "presets/recipes", "corpus")), resolve("model-xl").model.n_embd)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Builds the wheel and extracts it, as an installer does. Returns the folder with the installed package."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("mlxgpt-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_resources_are_in_the_wheel(installed, tmp_path):
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(installed)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    counts = [str(len(list((ROOT / folder).glob("*.toml")))) for folder in ("presets", "presets/recipes", "corpus")]
    assert done.stdout.split() == [*counts, "384"], done.stderr


def test_the_wheel_holds_the_package_and_no_more(installed):
    top = {p.name for p in installed.iterdir()}
    assert top == {"mlx_gpt"} | {name for name in top if name.endswith(".dist-info")}
    for folder in ("web/assets", "serve/page"):
        names = {p.name for p in (ROOT / "mlx_gpt" / folder).iterdir()}
        assert names and names == {p.name for p in (installed / "mlx_gpt" / folder).iterdir()}
    tasks = {p.name for p in (ROOT / "mlx_gpt/code/tasks").iterdir()}
    assert tasks == {p.name for p in (installed / "mlx_gpt/code/tasks").iterdir()}
    assert "mlxgpt = mlx_gpt.cli.main:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()
