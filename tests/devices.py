"""The device that the tests run on, and the tolerances that belong to it.

The environment variable MLXGPT_TEST_DEVICE is "cpu", the default, or "gpu". It is the default device of MLX in the
process of the tests. Processes that tests start use MLX's own default.
"""

import os

import pytest

from mlx_gpt.device.mlx import mx

DEVICE = os.environ.get("MLXGPT_TEST_DEVICE", "cpu")
DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
# Kind of law -> largest difference on each device. Those of a CPU are a small multiple of the measured differences.
# Those of a GPU are estimates: its kernels add in another order, and some of its functions, such as exp, round more.
TOLERANCES = {
    # The same operations on arrays of the same shapes, as in a resumed run.
    "exact": {"cpu": 0.0, "gpu": 0.0},
    "float32 mean": {"cpu": 2e-6, "gpu": 2e-5},
    "float32 loss": {"cpu": 1e-5, "gpu": 1e-4},
    "float32 product": {"cpu": 2e-5, "gpu": 1e-4},
    # Weights after a few updates.
    "float32 updates": {"cpu": 2e-5, "gpu": 2e-4},
    # Logits of a small network.
    "float32 network": {"cpu": 1e-4, "gpu": 1e-3},
    "bfloat16 product": {"cpu": 0.08, "gpu": 0.08},
}


def tolerance(law: str) -> float:
    """Returns the largest difference that a kind of law allows on the device of the tests."""
    return TOLERANCES[law][DEVICE]


def cpu_only(reason: str) -> pytest.MarkDecorator:
    """Skips a test if the tests run on another device than the CPU."""
    return pytest.mark.skipif(DEVICE != "cpu", reason=f"concerns the CPU only: {reason}")


def use_device() -> None:
    """Makes the device of the tests MLX's default device.

    Raises:
        pytest.UsageError: There is no such device.
    """
    if DEVICE not in DEVICES:
        raise pytest.UsageError(f"MLXGPT_TEST_DEVICE={DEVICE}: unknown device; choose from {', '.join(DEVICES)}")
    if not mx.is_available(DEVICES[DEVICE]):
        raise pytest.UsageError(
            f"MLXGPT_TEST_DEVICE={DEVICE}: MLX finds no such device; see mlxgpt doctor, or set MLXGPT_TEST_DEVICE=cpu"
        )
    mx.set_default_device(DEVICES[DEVICE])
