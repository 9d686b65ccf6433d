"""The report on a machine: a part that fails or takes too long is a line of the page, and the other parts are there."""

import importlib.util
import json
import sys

from constants import ROOT

SPEC = importlib.util.spec_from_file_location("device_report", ROOT / "experiments/device_report.py")
device_report = sys.modules["device_report"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(device_report)

CODE = {
    "doctor": "import json; print(json.dumps({'chip': 'Chip 9', 'backend': 'cpu', 'blas_path': '/home/somebody'}))",
    "breaks": "import sys; sys.exit('it broke')",
    "hangs": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    "last": 'print(\'{"speed": 7, "machine": {"kept": "/home/somebody"}}\')',
}


def test_a_part_that_fails_is_a_line_of_the_report(tmp_path):
    parts = [
        device_report.Part(
            name=name, command=["-c", code], limit=1 if name == "hangs" else 30, show=device_report.table
        )
        for name, code in CODE.items()
    ]
    page = device_report.report(parts, tmp_path).read_text()
    found = json.loads((tmp_path / "report.json").read_text())
    assert [found[name]["status"] for name in CODE] == ["done", "failed", "failed", "done"]
    assert "# mlxgpt on Chip 9 (cpu)" in page and "| speed | 7 |" in page
    assert "| breaks | exit code 1: it broke |" in page and "| hangs | not finished after 1 s |" in page
    assert "somebody" not in page + json.dumps(found)


def test_the_parts_of_the_report_are_commands_of_this_version(tmp_path):
    names = [part.name for part in device_report.parts("model-l", False, tmp_path)]
    assert names == ["doctor", "tests", "tuner", "bench", "resume", "memory", "drift"]
    assert device_report.read_tests("x\nFAILED a::b - no\n1 failed, 2 passed in 3s")["failures"] == ["FAILED a::b - no"]
