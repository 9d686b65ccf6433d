"""Lazy packages: a public name of the package is imported when it is first used.

This uses a module-level `__getattr__` (PEP 562), as Scientific Python recommends (SPEC 1). `from mlx_gpt import run`,
for example, does not load the modules of `mlx_gpt.run`. A command can therefore import all it needs at the top of its
file and still print its help without delay.
"""

from collections.abc import Callable, Mapping
from importlib import import_module


def attach(package: str, modules: Mapping[str, str]) -> tuple[Callable, Callable[[], list[str]], list[str]]:
    """Makes `__getattr__`, `__dir__` and `__all__` for a package.

    If a public name equals the name of its module, as in {"tuned": "tuned"}, it refers to the module and not to an
    attribute of the module. Python gives no choice here: importing the module `tuned` assigns it to the package's
    attribute `tuned`.

    Args:
        package: The `__name__` of the package.
        modules: For each public name, the module in the package that defines it. {"begin": "start"} makes
            `package.begin` the attribute `begin` of the module `package.start`.

    Returns:
        The functions `__getattr__` and `__dir__` and the list `__all__`.

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
