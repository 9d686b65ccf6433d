"""Rules of the code: which module may import which, what no module may do, and what the documentation must show.

A module is named by its path in mlx_gpt/ without the suffix: `train/trainer`. Imports inside functions count.
"""

import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlx_gpt"
ALL_FILES = sorted(PACKAGE.rglob("*.py"))
# Code of models for transformers and mlx-lm. Exports contain it, and these libraries run it without mlxgpt.
TEMPLATES = "formats/huggingface/templates"

# Module or folder -> (what it may import from mlx_gpt, which packages outside the standard library it may import).
#
# A key that ends in / is for every module in that folder that has no row of its own. These modules may import
# everything in that folder. An entry allows a module, or all modules of a folder. Outside device/mlx, `mlx` stands for
# mlx.utils, because ALONE forbids mlx.core and mlx.nn there.
TABLE = {
    "__init__": ("api/__init__ lazy version", ""),
    "__main__": ("cli/main", ""),
    "errors": ("", ""),
    "lazy": ("", ""),
    "version": ("", ""),
    "paths": ("", "platformdirs"),
    "parse": ("errors", ""),
    "files": ("errors", ""),
    "rng": ("device/mlx", "numpy"),
    "config/": ("", ""),
    "config/table": ("errors", ""),
    "config/renames": ("errors", ""),
    "config/network": ("config/table errors", ""),
    "config/schema": ("config/network config/renames config/table errors", ""),
    "config/budget": ("config/effects config/schema errors", ""),
    "config/presets": ("config/budget config/renames config/schema config/table errors parse paths", ""),
    "config/effects": ("config/schema", ""),
    "config/law": ("config/budget config/presets config/schema", ""),
    "device/": ("lazy", ""),
    "device/blas": ("errors paths", ""),
    "device/jit": ("paths", ""),
    "device/mlx": ("config/schema device/blas device/jit", "mlx"),
    "device/lanes": ("device/mlx", ""),
    "device/memory": ("device/mlx", ""),
    "device/report": ("device", "numpy"),
    "data/": ("config device/mlx errors files lazy parse paths rng", "numpy"),
    "data/tokenizer": ("errors", "numpy"),
    "data/merges": ("data/tokenizer", "numpy"),
    "data/vocabularies": ("data/bpe data/tokenizer errors parse", ""),
    "data/bpe": ("config/schema data/bytelevel data/merges data/tokenizer errors parse", "numpy tokenizers"),
    "data/markov": ("errors", "numpy"),
    "data/patterns/": ("errors", ""),
    "data/library": ("config/presets errors files parse paths", "pooch"),
    "data/textfiles": ("errors", ""),
    "data/tokens": ("device/mlx", "numpy"),
    "model/": ("config device/mlx errors lazy rng", "mlx"),
    "model/packing": ("config/schema device/mlx errors model/gpt model/ternary", "numpy"),
    "model/mixers/": ("config device/mlx model/linear model/norm model/positions model/specs model/state", ""),
    "model/ffn/": ("config device/mlx model/linear model/specs", ""),
    "optim/": ("config/schema device model/specs", ""),
    "checkpoint/": ("config errors files model/gpt model/specs parse", "numpy"),
    "checkpoint/container": ("errors parse", "numpy safetensors"),
    "train/": ("", ""),
    "train/reports": ("", ""),
    "train/saving": ("checkpoint/store errors files paths train/reports", ""),
    "train/patience": ("checkpoint/store", ""),
    "train/parallel": ("device/mlx errors", "mlx"),
    "train/pace": ("checkpoint/store config train/parallel train/reports", ""),
    "train/rounds": ("config/schema device/mlx train/parallel", "mlx numpy"),
    "train/objective": ("config/schema data/windows device/mlx", ""),
    "train/objectives": ("config/schema config/table rl/objectives train/objective", ""),
    "train/source": ("config/schema data/fim data/windows device/mlx errors rng", "numpy"),
    "train/evaluate": (
        "checkpoint/store config/schema data/windows device rng train/objective train/parallel train/reports",
        "numpy",
    ),
    "train/statistics": ("config/schema device/mlx train/streams train/trits", ""),
    "train/streams": ("config/schema device/mlx model/mhc", ""),
    "train/trits": ("config/schema device/mlx model/packing", ""),
    "train/step": ("config/schema device optim/clip rng train/objective train/parallel", "mlx"),
    "train/snapshot": ("checkpoint/store device/mlx train/step", "mlx numpy"),
    "train/trainer": ("checkpoint/store config/schema device errors files train", "mlx"),
    "distributed/": ("errors lazy parse", ""),
    "distributed/ranks": ("device/mlx distributed errors parse train/parallel", "mlx"),
    "generation/": ("device errors lazy model/state rng", "numpy"),
    "generation/scheduler": ("device/mlx generation", ""),
    "generation/together": ("device/mlx errors generation", ""),
    "formats/": ("checkpoint config data device/mlx errors files model parse", "numpy safetensors"),
    "watch/": ("lazy", ""),
    "watch/metrics": ("files train/reports watch/tail", ""),
    "watch/console": ("train/reports watch/chart", "rich"),
    "watch/chart": ("watch/series", "rich"),
    "watch/folders": ("paths", ""),
    "watch/command": ("", ""),
    "watch/health": ("train/reports watch/detectors", ""),
    "watch/detectors/": ("", ""),
    "watch/sinks/": ("errors", "tensorboardX trackio wandb"),
    "watch/code": ("", "rich"),
    "watch/compare": ("config/renames errors parse watch/series watch/tail", "matplotlib"),
    "watch/tail": ("parse", ""),
    "watch/series": ("", ""),
    "watch/progress": ("watch/tail", ""),
    "watch/runs": (
        "config/renames errors files parse watch/compare watch/folders watch/health watch/progress "
        "watch/series watch/tail",
        "",
    ),
    "watch/dashboard/": ("watch/compare watch/runs web", "starlette"),
    "watch/dashboard/settings": ("config watch/compare", ""),
    "web/": ("errors", "h11 msgspec starlette uvicorn"),
    "rl/": ("errors", ""),
    "rl/launcher": ("", ""),
    "rl/objectives": ("config/schema device/mlx errors train/objective", "numpy"),
    "rl/rewards": ("code config errors rl/sandbox", ""),
    "rl/prompts": ("code/languages code/problems config data/corpus data/patterns errors parse", ""),
    "rl/rollout": (
        "checkpoint/container code/languages code/problems config/schema device/mlx errors files generation model/gpt "
        "parse rl/objectives rl/rewards rng train/objective",
        "mlx numpy safetensors",
    ),
    "code/": ("errors rl/sandbox", ""),
    "code/languages": ("code config/table", ""),
    "code/problems": ("errors parse", ""),
    "code/prompts": ("code/problems", ""),
    "code/settings": ("code/problems code/prompts errors", ""),
    "code/statistics": ("", ""),
    "code/ngram": ("", "numpy"),
    "code/history": ("files parse watch/metrics", ""),
    "serve/": ("errors generation version web", "msgspec starlette"),
    "serve/prometheus": ("generation/scheduler", "prometheus_client"),
    "run/": ("checkpoint config data device errors files formats lazy model optim paths train", ""),
    "run/build": (
        "checkpoint/store config data device errors model optim/optimizers rl/prompts rl/rewards rl/rollout "
        "run/request train",
        "",
    ),
    "run/budget": ("config data/encoding device/mlx errors model/cost run train/objectives", ""),
    "run/request": ("config/presets config/schema errors", ""),
    "run/rl": ("config/presets config/table errors rl/prompts rl/rewards run/request train/objectives", ""),
    "run/planning": ("checkpoint/store config device/mlx model/cost run train/objectives train/trainer", ""),
    "run/tuned": ("config device errors files parse paths", ""),
    "run/session": (
        "distributed/ranks errors files run train/parallel train/reports watch/health watch/metrics watch/tail",
        "",
    ),
    "run/listing": ("config/renames errors files parse paths watch/folders watch/progress watch/tail", ""),
    "run/cleaning": ("errors files paths run/listing watch/folders", ""),
    "api/": ("lazy", ""),
    "api/models": ("data/fim errors generation run/loading", ""),
    "api/training": ("errors run", ""),
    "api/evaluation": ("data device/report errors generation run train/evaluate", ""),
    "api/coding": ("code data device/report errors generation model rl/sandbox run", "numpy"),
    "api/conversion": ("checkpoint errors files formats model/packing run", ""),
    "api/exporting": (
        "api/evaluation checkpoint/store errors files formats model/packing run watch",
        "huggingface_hub",
    ),
    "bench/": ("config data device errors files generation lazy model optim rng run train", "mlx numpy"),
    "bench/pytorch": ("bench/case", "numpy torch"),
    "bench/report": ("", "matplotlib"),
    "cli/": (
        "api bench config data device distributed errors files generation model parse paths run train/reports watch",
        "click",
    ),
    "cli/main": ("cli errors version", "click"),
    "cli/pipeline": ("cli code/settings config/presets errors files parse run", "click"),
    "cli/rl": ("cli errors run", "click"),
    "cli/eval_code": ("api cli/options code errors run watch", "click"),
    "cli/access": ("cli/options errors web/guard", "click"),
    "cli/serve": ("api cli data/excerpts device errors model run serve web", "click"),
    "cli/beside": ("", ""),
    "cli/tables": ("", "rich"),
    "cli/watch": ("cli errors paths watch/dashboard web", "click"),
}
# Module of another package -> the only module of mlx_gpt that may import it.
ALONE = {"mlx.core": "device/mlx", "mlx.nn": "device/mlx", "pooch": "data/library", "tokenizers": "data/bpe"}
# Names of modules and folders that say nothing about their content.
CATCH_ALL = {"base", "common", "helper", "helpers", "misc", "shared", "tools", "util", "utils"}
MAX_FILE, MAX_FUNCTION = 400, 60  # lines
# Modules that can run code from a file they read.
UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def name_of(path: Path) -> str:
    """`/.../mlx_gpt/train/trainer.py` -> `train/trainer`"""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


MODULES = {name_of(path): path for path in ALL_FILES}
OURS = [name for name in MODULES if not name.startswith(TEMPLATES)]


@functools.cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def module_at(dotted: str) -> str | None:
    """`mlx_gpt.train.trainer` -> `train/trainer`, `mlx_gpt.train` -> `train/__init__`; None if it is not our module."""
    head, _, rest = dotted.partition(".")
    path = rest.replace(".", "/")
    names = [path, f"{path}/__init__".lstrip("/")] if head == "mlx_gpt" else []
    return next((name for name in names if name in MODULES), None)


def imported(nodes):
    """Yields the dotted names of the modules that AST nodes import.

    `from a import b` yields a.b if that is a module of mlx_gpt or a key of ALONE, and a otherwise. A string that is the
    dotted name of a module also counts as an import, because code may import the module by that name.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            for alias in node.names:
                both = f"{node.module}.{alias.name}"
                yield both if module_at(both) or both in ALONE else node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # The name of a package does not count: code uses it to read the files of the package.
            if not (module_at(node.value) or "__init__").endswith("__init__"):
                yield node.value


def attached(name: str):
    """Yields the dotted names of the modules that a package loads lazily, from attach(__name__, {name: module})."""
    package = ".".join(["mlx_gpt", *name.split("/")[:-1]])
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "attach":
            table = node.args[1]
            values = table.values if isinstance(table, ast.Dict) else [table.value]
            yield from (f"{package}.{ast.literal_eval(value)}" for value in values)


@functools.cache
def imports_of(name: str) -> frozenset[str]:
    """Returns the dotted names of all modules that a module imports, at its top, in functions or lazily."""
    return frozenset([*imported(ast.walk(tree_of(name))), *attached(name)])


def inner(name: str) -> set[str]:
    """Returns the modules of mlx_gpt that a module imports."""
    return {found for dotted in imports_of(name) if (found := module_at(dotted))} - {name}


def outer(dotted_names) -> set[str]:
    """Returns the top-level packages of these modules, except mlx_gpt and the standard library."""
    return {dotted.split(".")[0] for dotted in dotted_names} - sys.stdlib_module_names - {"mlx_gpt"}


def folders_of(name: str) -> list[str]:
    """`model/mixers/kernels` -> ["model/mixers/", "model/"]"""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:i]) + "/" for i in range(len(parts), 0, -1)]


def row_of(name: str) -> str | None:
    """Returns the key of TABLE for a module: its own, or that of the innermost folder with a row."""
    return next((row for row in (name, *folders_of(name)) if row in TABLE), None)


def is_within(name: str, allowed: str) -> bool:
    """Whether `allowed` is this module or a folder that contains it."""
    return name in (allowed, f"{allowed}/__init__") or name.startswith(f"{allowed}/")


# -- imports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_a_module_imports_only_what_the_table_allows(name):
    row = row_of(name)
    assert row, "no row in TABLE"
    ours, others = (names.split() for names in TABLE[row])
    own_folder = [row.rstrip("/")] * row.endswith("/")
    forbidden = {n for n in inner(name) if not any(is_within(n, allowed) for allowed in [*ours, *own_folder])}
    assert not forbidden, f"{row} may not import {forbidden}"
    assert outer(imports_of(name)) <= set(others)
    assert all(ALONE.get(dotted, name) == name for dotted in imports_of(name))


def test_every_row_of_the_table_is_for_modules_there_are():
    used = {row_of(name) for name in OURS}
    assert set(TABLE) == used, f"no module for {set(TABLE) - used}"
    for row, (ours, others) in TABLE.items():
        for allowed in ours.split():
            assert any(is_within(name, allowed) for name in MODULES), f"{row} may import {allowed}, which is gone"
        served = [name for name in OURS if row_of(name) == row]
        packages = set().union(*(outer(imports_of(name)) for name in served))
        assert packages == set(others.split()), f"{row} imports {packages}"
    assert set(ALONE.values()) <= MODULES.keys()


def test_no_modules_import_each_other_in_a_circle():
    """Lazy imports count too."""
    graphlib.TopologicalSorter({name: inner(name) for name in OURS}).prepare()


def test_nothing_imports_the_command_line():
    for name in OURS:
        assert name == "__main__" or name.startswith("cli/") or not any(n.startswith("cli/") for n in inner(name)), name


def test_templates_import_nothing_of_ours():
    for name in MODULES.keys() - set(OURS):
        # Templates may import each other with relative imports, which have a level above 0.
        nodes = [n for n in ast.walk(tree_of(name)) if not (isinstance(n, ast.ImportFrom) and n.level)]
        assert outer(imported(nodes)) <= {"mlx", "mlx_lm", "torch", "transformers"}
        assert not any(module_at(dotted) for dotted in imported(nodes))


def loads_when_imported(name: str) -> set[str]:
    """Returns the modules of mlx_gpt that run when a module is imported.

    These are the module itself, the packages that contain it, and the same for every module imported at its top.
    """
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [f"{folder}__init__" for folder in ["", *folders_of(name)]]
            top = [node for node in tree_of(name).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            waiting += [module for dotted in imported(top) if (module := module_at(dotted))]
    return found


def test_an_import_changes_no_variable_and_loads_no_library():
    """`import mlx_gpt` loads no other library. Modules that do not import device/mlx change no environment variable."""
    light = [name for name in OURS if name != "__main__" and "device/mlx" not in loads_when_imported(name)]
    assert {"__init__", "cli/main", "cli/train", "cli/serve", "config/schema", "train/reports"} <= set(light)
    dotted = [".".join(["mlx_gpt", *name.removesuffix("__init__").strip("/").split("/")]).strip(".") for name in light]
    code = f"""
import importlib, json, os, sys
environment, modules = dict(os.environ), set(sys.modules)
import mlx_gpt
first = sorted(set(sys.modules) - modules)
for name in {dotted}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # an optional library
        assert not error.name.startswith("mlx_gpt"), error
print(json.dumps([first, os.environ == environment, "mlx" in sys.modules]))
"""
    empty = {"PYTHONPATH": str(ROOT)}  # not os.environ, which this process has changed by importing mlx_gpt
    done = subprocess.run([sys.executable, "-c", code], env=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, same_environment, has_mlx = json.loads(done.stdout)
    assert not outer(first) and same_environment and not has_mlx
    assert {module_at(name) for name in first if name.startswith("mlx_gpt")} <= loads_when_imported("__init__")


# -- what no module does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_no_module_does_what_is_forbidden(name):
    assert ast.get_docstring(tree_of(name)), "no docstring"
    assert not CATCH_ALL & set(name.split("/")), "a name that says nothing"
    assert not UNPICKLERS & {dotted.split(".")[0] for dotted in imports_of(name)}
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Call):
            called, arguments = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert called not in ("eval", "exec", "__import__", "mx.load", "torch.load"), called
            assert arguments.get("allow_pickle", "False") == "False", called
            in_cli = name.startswith("cli/")
            assert in_cli or called not in ("print", "sys.exit", "os._exit", "exit"), called


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name):
    """The lines of a function are counted from `def` on and include nested functions."""
    assert len(MODULES[name].read_text().splitlines()) <= MAX_FILE
    functions = [n for n in ast.walk(tree_of(name)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {node.name for node in functions if node.end_lineno - node.lineno + 1 > MAX_FUNCTION}
    assert not long


@pytest.mark.parametrize("name", OURS)
def test_public_functions_and_classes_are_documented(name):
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [n for n in tree_of(name).body if isinstance(n, kinds) and not n.name.startswith("_")]
    assert not {n.name for n in public if not ast.get_docstring(n)}


# -- pages ----------------------------------------------------------------------------------------------------------


def test_pages_name_files_that_are_there():
    """Paths such as `model/gpt.py` are relative to mlx_gpt/, to the checkout or to the page. NAME is a placeholder."""
    pages, missing = [ROOT / "README.md", *ROOT.glob("docs/*.md")], set()
    for page in pages:
        for path in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|sh|toml|md))`", page.read_text()):
            if "NAME" not in path and not any((root / path).exists() for root in (PACKAGE, ROOT, page.parent)):
                missing.add(path)
    assert not missing


def shown_in_tree(text: str) -> set[str]:
    """Returns the modules in the tree of mlx_gpt/ that a page shows.

    The tree has one line for each folder and file. The indentation shows which folder contains it.
    """
    found, folders = set(), [(0, "")]
    for line in text[text.index("\nmlx_gpt/\n") :].split("```")[0].splitlines()[2:]:
        indent, name = re.match(r"( +)([\w-]+(?:/|\.py))", line).groups()
        while len(indent) <= folders[-1][0]:
            folders.pop()
        path = folders[-1][1] + name
        if name.endswith("/"):
            folders.append((len(indent), path))
        else:
            found.add(path.removesuffix(".py"))
    return found


def test_the_page_shows_the_tree_as_it_is():
    text = (ROOT / "docs/architecture.md").read_text()
    assert shown_in_tree(text) == {name for name in OURS if not name.endswith("__init__")}
