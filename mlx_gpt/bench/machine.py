"""Describes the machine on which the benchmark runs. On macOS this includes its power and thermal state."""

import os
import shutil
import subprocess
import sys

from mlx_gpt.device.report import device_report


def machine() -> dict:
    """Returns device_report() with further facts that affect speed.

    These are: the load average of the last minute, and on macOS the power source, the low-power mode and the thermal
    limits.
    """
    return device_report() | {
        "load_average": round(os.getloadavg()[0], 2),
        **(_mac_power() if sys.platform == "darwin" else {}),
    }


def _mac_power() -> dict[str, str]:
    """Returns the power source, the low-power mode and the thermal limits as the command `pmset` prints them."""
    settings = _output("pmset", "-g").splitlines()
    return {
        "power_source": next(iter(_output("pmset", "-g", "ps").splitlines()), "unknown"),
        "low_power_mode": next((line.split()[-1] for line in settings if "lowpowermode" in line), "unknown"),
        "thermal": " ".join(_output("pmset", "-g", "therm").split()) or "unknown",
    }


def _output(*command: str) -> str:
    """Returns what a system command writes to stdout, or "" if the command does not exist."""
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
