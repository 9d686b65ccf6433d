"""The folder of the cache on each operating system."""

from pathlib import Path

import platformdirs
import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix

from mlx_gpt import paths


@pytest.mark.parametrize("system, place", [(MacOS, "Library/Caches/mlxgpt"), (Unix, ".cache/mlxgpt")])
def test_the_cache_is_where_the_system_keeps_caches(system, place, monkeypatch):
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_dir() == Path.home() / place


def test_the_cache_can_be_put_on_another_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(platformdirs, "PlatformDirs", Unix)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / "mlxgpt"
