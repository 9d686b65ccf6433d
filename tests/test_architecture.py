"""The house: which room may import which, and what no room may do. Imports inside functions count."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlx_gpt"
TEMPLATES = PACKAGE / "formats/huggingface/templates"  # code that others run
FILES = sorted(path for path in PACKAGE.rglob("*.py") if TEMPLATES not in path.parents)

# Room -> (rooms it may import, packages it may import beyond the standard library).
ROOMS = {
    "errors": (set(), set()),
    "lazy": (set(), set()),
    "version": (set(), set()),
    "paths": (set(), {"platformdirs"}),
    "config": ({"errors", "paths"}, set()),
    "device": ({"config", "errors", "lazy", "paths"}, {"mlx", "numpy"}),
    "rng": ({"device"}, {"numpy"}),
    "files": ({"errors"}, set()),
    "data": ({"config", "device", "errors", "files", "lazy", "paths", "rng"}, {"numpy", "pooch", "tokenizers"}),
    "model": ({"config", "device", "errors", "lazy", "rng"}, {"mlx"}),
    "optim": ({"config", "device"}, set()),
    "checkpoint": ({"config", "errors", "files", "model"}, {"numpy", "safetensors"}),
    "train": ({"checkpoint", "config", "data", "device", "errors", "files", "optim", "rng"}, {"mlx", "numpy"}),
    "generation": ({"device", "errors", "lazy", "model", "rng"}, {"numpy"}),
    "watch": ({"config", "errors", "lazy", "train"}, {"matplotlib", "rich"}),
    "formats": ({"checkpoint", "config", "data", "device", "errors", "files", "model"}, {"numpy", "safetensors"}),
    "serve": (
        {"errors", "generation"},
        {"h11", "msgspec", "prometheus_client", "starlette", "uvicorn"},
    ),
    "run": (
        {
            *("checkpoint", "config", "data", "device", "errors", "files", "formats", "lazy", "model", "optim"),
            *("paths", "train", "watch"),
        },
        set(),
    ),
    "api": (
        {
            *("checkpoint", "data", "device", "errors", "files", "formats", "generation", "lazy", "run", "train"),
            "watch",
        },
        {"huggingface_hub"},
    ),
    "bench": (
        {
            *("config", "data", "device", "errors", "files", "generation", "lazy", "model", "optim", "rng", "run"),
            "train",
        },
        {"matplotlib", "mlx", "numpy", "torch"},
    ),
    "cli": (None, {"click"}),
}
# Packages that one file alone may import.
ONLY = {
    "pooch": "data/library.py",
    "tokenizers": "data/bpe.py",
    "mlx.core": "device/mlx.py",
    "mlx.nn": "device/mlx.py",
    "torch": "bench/pytorch.py",
}
BANNED_NAMES = {"utils", "helpers", "common", "misc"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path):
    """Dotted names of all modules imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "mlx_gpt":
                yield from (f"mlx_gpt.{alias.name}" for alias in node.names)


def inner_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("mlx_gpt.")} - {
        room_of(path),
        "__version__",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_the_table_allows(path):
    import sys

    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    rooms, packages = ROOMS[room]
    assert rooms is None or inner_rooms(path) <= rooms
    outside = {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names - {"mlx_gpt"}
    assert outside <= packages
    for name in imports_of(path):
        assert ONLY.get(name, str(path.relative_to(PACKAGE))) == str(path.relative_to(PACKAGE)), name


def test_the_rooms_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if room_of(path) not in ("__init__", "__main__"):
            graph.setdefault(room_of(path), set()).update(inner_rooms(path))
    assert set(graph) == set(ROOMS)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_does_what_is_forbidden(path):
    tree, room = ast.parse(path.read_text()), room_of(path)
    assert ast.get_docstring(tree), "a module docstring is the door"
    assert not BANNED_NAMES & set(path.relative_to(PACKAGE).with_suffix("").parts)
    names = set(imports_of(path))
    assert not {"pickle", "marshal", "shelve"} & names
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "__import__", "mx.load"), called
            assert room == "cli" or called not in ("print", "sys.exit", "os._exit", "exit"), called


def test_public_functions_and_classes_of_the_product_are_documented():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_the_readme_shows_the_tree_as_it_is():
    text = (ROOT / "README.md").read_text()
    for path in FILES:
        if path.name != "__init__.py":
            assert path.name in text, f"README.md does not show {path.relative_to(ROOT)}"
