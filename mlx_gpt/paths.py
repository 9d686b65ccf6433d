"""Where mlxgpt keeps its files: the presets and manifests of the package, and the user's cache."""

from pathlib import Path


def resource_dir(name: str) -> Path:
    """`presets` or `corpus`: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def cache_dir() -> Path:
    """The user's cache folder for mlxgpt: in XDG_CACHE_HOME if it is set, else where the system keeps caches."""
    import platformdirs  # costs as much as all other imports of this package's settings, which every --help reads

    return platformdirs.user_cache_path("mlxgpt", appauthor=False)
