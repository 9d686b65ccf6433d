"""Describes the measured machine, with its power and thermal state if the system reports them."""

import os
import shutil
import subprocess
import sys

from mlx_gpt.device.mlx import on_gpu
from mlx_gpt.device.report import device_report


def machine() -> dict:
    """Returns device_report() with TF32, load, power and thermal state."""
    return device_report() | {
        "tf32": os.environ.get("MLX_ENABLE_TF32", "1") != "0" if on_gpu() else False,
        "load_average": round(os.getloadavg()[0], 2),
        **(_mac_power() if sys.platform == "darwin" else {}),
    }


def _mac_power() -> dict[str, str]:
    """Power source, low-power mode and thermal limits, as macOS reports them."""
    settings = _output("pmset", "-g").splitlines()
    return {
        "power_source": next(iter(_output("pmset", "-g", "ps").splitlines()), "unknown"),
        "low_power_mode": next((line.split()[-1] for line in settings if "lowpowermode" in line), "unknown"),
        "thermal": " ".join(_output("pmset", "-g", "therm").split()) or "unknown",
    }


def _output(*command: str) -> str:
    """The stdout of a system command; empty if the command does not exist."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
