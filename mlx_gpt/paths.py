"""Where mlxgpt keeps its files: the presets and manifests of the package, and the user's cache."""

import os
import sys
from pathlib import Path


def resource_dir(name: str) -> Path:
    """`presets` or `corpus`: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_dir() -> Path:
    """The user's cache folder for mlxgpt."""
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/mlxgpt"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxgpt"
