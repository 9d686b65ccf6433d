"""The machine that was measured, with what may slow it down: power and heat, where the system tells."""

import os
import shutil
import subprocess
import sys

from mlx_gpt.device.mlx import on_gpu
from mlx_gpt.device.report import device_report


def machine() -> dict:
    """device_report() and TF32, load, power and thermal state."""
    return device_report() | {
        "tf32": os.environ.get("MLX_ENABLE_TF32", "1") != "0" if on_gpu() else False,
        "load_average": round(os.getloadavg()[0], 2),
        **(_mac_power() if sys.platform == "darwin" else {}),
    }


def _mac_power() -> dict[str, str]:
    """macOS's own words on power source, low-power mode and thermal limits."""
    settings = _said("pmset", "-g").splitlines()
    return {
        "power_source": next(iter(_said("pmset", "-g", "ps").splitlines()), "unknown"),
        "low_power_mode": next((line.split()[-1] for line in settings if "lowpowermode" in line), "unknown"),
        "thermal": " ".join(_said("pmset", "-g", "therm").split()) or "unknown",
    }


def _said(*command: str) -> str:
    """What a system command prints; nothing where it is missing or fails."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
