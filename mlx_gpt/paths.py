"""Paths of mlxgpt's own files: presets and corpus manifests, the user's cache folder, and run folders."""

from pathlib import Path

RUNS = Path("runs")  # new runs are made here, in the working folder
# Names of the checkpoints in a run folder.
LATEST, BEST = "checkpoint.safetensors", "best.safetensors"


def resource_dir(name: str) -> Path:
    """Returns the folder `presets` or `corpus`: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_dir() -> Path:
    """Returns the user's cache folder for mlxgpt: in XDG_CACHE_HOME if it is set, else in the system's cache folder.

    The folder may not exist yet.
    """
    import platformdirs  # imported here because it would double the import time of `mlxgpt --help`

    return platformdirs.user_cache_path("mlxgpt", appauthor=False)
