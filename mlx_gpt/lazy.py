"""Packages whose public names load their module when they are first used.

The idiom is PEP 562's module `__getattr__`, as scientific Python recommends it (SPEC 1). It keeps `from mlx_gpt import
run` free of cost, so that a command can import what it needs at the top of its file and still show its help at once.
"""

from collections.abc import Callable, Mapping
from importlib import import_module


def attach(package: str, modules: Mapping[str, str]) -> tuple[Callable, Callable[[], list[str]], list[str]]:
    """Returns `__getattr__`, `__dir__` and `__all__` of a package.

    A module of the package hides a function of the same name as soon as it is imported. Therefore such a name always
    stands for the module.

    Args:
        package: The package's `__name__`.
        modules: The module that holds each public name, as {"begin": "start"}. {"tuned": "tuned"} is the module itself.

    Example:
        __getattr__, __dir__, __all__ = attach(__name__, {"begin": "start", "tuned": "tuned"})
    """

    def __getattr__(name: str):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{modules[name]}")
        return module if modules[name] == name else getattr(module, name)

    names = sorted(modules)
    return __getattr__, lambda: names, names
