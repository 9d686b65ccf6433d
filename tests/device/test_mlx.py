"""The preparation of MLX: its environment variables, and the limits of memory on Metal."""

import json
import os
import subprocess
import sys

import pytest
from constants import ROOT

from mlx_gpt.config.schema import SpeedConfig
from mlx_gpt.device import memory
from mlx_gpt.device.mlx import mx, speed_variables


def variables(*, platform=sys.platform, **env):
    """Returns the value of the variables below, and the names that doctor reports, in a new process."""
    code = f"""
import json, os, sys
sys.platform = {platform!r}
from mlx_gpt.device.mlx import changed_variables
names = "MLX_ENABLE_TF32", "MLX_BFS_MAX_WIDTH"
print(json.dumps([*map(os.environ.get, names), [n for n in names if n in changed_variables()]]))
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLX_")} | {"PYTHONPATH": str(ROOT)} | env
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_float32_is_not_tf32_unless_the_user_asks():
    assert variables()[0] == "0" and "MLX_ENABLE_TF32" in variables()[2]
    assert variables(MLX_ENABLE_TF32="1")[0] == "1"
    assert speed_variables(SpeedConfig()) == {}
    assert speed_variables(SpeedConfig(tf32=True, attention_tile=64)) == {
        "MLX_ENABLE_TF32": "1",
        "MLX_SDPA_VJP_BLOCK": "64",
    }


def test_the_width_of_the_scheduler_is_set_where_it_was_measured():
    """On Linux CPUs only."""
    assert variables(platform="darwin")[1] is None
    if not mx.is_available(mx.gpu) and sys.platform == "linux":
        assert variables()[1:] == ["200", ["MLX_ENABLE_TF32", "MLX_BFS_MAX_WIDTH"]]
        assert variables(MLX_BFS_MAX_WIDTH="20")[1] == "20"


@pytest.mark.parametrize("device, info", [("cpu", {"device_name": "x"}), ("cuda", {"total_memory": 8}), ("metal", {})])
def test_memory_is_not_limited_where_nothing_is_recommended(device, info, monkeypatch):
    monkeypatch.setattr(memory, "kind", lambda: device)
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "set_cache_limit", lambda size: pytest.fail("set"))
    memory.limit_memory()
    assert memory.memory_limits() == {}


def test_memory_on_metal_is_limited_by_the_recommended_working_set(monkeypatch):
    found = {}
    monkeypatch.setattr(memory, "kind", lambda: "metal")
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 12_000})
    for name in ("set_cache_limit", "set_wired_limit"):
        monkeypatch.setattr(mx, name, lambda size, name=name: found.update({name: size}))
    memory.limit_memory()
    assert found == {"set_wired_limit": 12_000, "set_cache_limit": 6_000}
