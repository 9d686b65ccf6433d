"""The choice of the device that the tests run on."""

import os
import subprocess
import sys

import pytest
from constants import ROOT
from devices import TOLERANCES

from mlx_gpt.device.mlx import mx


def collected(device):
    """Runs pytest up to the collection of one file, with MLXGPT_TEST_DEVICE set."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "tests/test_paths.py"]
    env = os.environ | {"MLXGPT_TEST_DEVICE": device}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("device, words", [("gpu", "MLX finds no such device"), ("tpu", "choose from cpu, gpu")])
def test_a_device_that_is_not_there_is_one_line_and_a_failure(device, words):
    if device == "gpu" and mx.is_available(mx.gpu):
        pytest.skip("there is a GPU")
    done = collected(device)
    (line,) = (done.stdout + done.stderr).strip().splitlines()
    assert done.returncode != 0 and f"MLXGPT_TEST_DEVICE={device}" in line and words in line


def test_every_law_has_a_tolerance_on_every_device():
    assert all(row["gpu"] >= row["cpu"] >= 0 for row in TOLERANCES.values())
    assert set(TOLERANCES["exact"].values()) == {0.0}
