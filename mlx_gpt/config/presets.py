"""Presets and recipes: TOML files that hold what differs from the defaults, and `--set`.

Values are laid over each other in this order: defaults, preset, recipe, command line.
"""

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from mlx_gpt.config.schema import RENAMED, TABLES, Config, ModelConfig, current_names
from mlx_gpt.config.table import allowed, lookup, merge, nest
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.paths import resource_dir


def resolve(
    preset: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
) -> Config:
    """Lays base (dotted settings, as overrides), preset, recipe and overrides over the defaults, in this order."""
    tables = nest(base or {})
    if preset is not None:
        tables = merge(tables, load_toml("presets", preset))
    if recipe is not None:
        tables = merge(tables, load_toml("presets/recipes", recipe))
    return Config.from_dict(merge(tables, current_names(nest(overrides or {}))))


def parse_set(text: str) -> tuple[str, Any]:
    """Reads one `--set`, as "model.n_head=4" -> ("model.n_head", 4)."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    key = RENAMED.get(key, key)
    table_name, dot, name = key.partition(".")
    if not (equals and dot):
        raise UserError(f"--set {text!r} is not TABLE.KEY=VALUE; write it as --set model.n_head=4")
    known = {f.name: f for f in fields(lookup(TABLES, table_name, "table"))}
    kind = lookup(known, name, f"setting in [{table_name}]", prefix=f"{table_name}.").type
    if kind is str:
        return key, value.strip("\"'")
    if kind == tuple[str, ...] and not value.startswith("["):
        return key, tuple(value.split(","))
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        raise UserError(f"--set {key}: {value!r} is not allowed; {allowed(known[name])}") from None


def names_of(folder: str) -> list[str]:
    """The names of the TOML files in a resource folder, sorted."""
    return sorted(p.stem for p in resource_dir(folder).glob("*.toml"))


def load_toml(folder: str, name: str) -> dict[str, Any]:
    """Reads `name` from a resource folder, or a path that ends in .toml."""
    path = Path(name)
    known = {n: resource_dir(folder) / f"{n}.toml" for n in names_of(folder)}
    if name in known or not (path.suffix == ".toml" or path.is_file()):
        kind = {"presets": "preset", "presets/recipes": "recipe"}[folder]
        path = lookup(known, name, f"{kind} (or TOML file)")
    try:
        return current_names(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"{path}: not a readable TOML file: {error}") from None


def preset_of(config: ModelConfig) -> str | None:
    """The name of the preset with this architecture, if there is one."""
    for name in names_of("presets"):
        if ModelConfig(**load_toml("presets", name)["model"]).architecture() == config.architecture():
            return name
    return None
