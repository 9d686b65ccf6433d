"""Presets and recipes, which are TOML files with the settings that differ from the defaults, and the option `--set`.

A preset describes a network, a recipe describes training. Later layers override earlier ones: defaults, preset, recipe,
command line.
"""

import contextlib
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from mlx_gpt.config.renames import MUON_RATE, MUON_REPLACED, RENAMED, current_names
from mlx_gpt.config.schema import TABLES, UNTIL_TIME_IS_UP, Config, ModelConfig, require_settings
from mlx_gpt.config.table import allowed, lookup, merge, nest
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.parse import parse_toml, read_toml
from mlx_gpt.paths import resource_dir


def resolve(
    preset: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    base: dict[str, Any] | None = None,
) -> Config:
    """Resolves the settings of a run. Each argument overrides those above it in this list.

    Args:
        base: Values that replace the defaults, by dotted name, as {"optimizer.name": "adamw"}.
        preset: Name of a preset, or path of a TOML file.
        recipe: Name of a recipe, or path of a TOML file.
        overrides: Values by dotted name.

    Raises:
        UserError: A name is unknown, a value is not allowed, or a file does not exist.
        BadFile: A file is not valid TOML.
    """
    return Config.from_dict(layered(preset, recipe, overrides, base))


def layered(
    preset: str | None, recipe: str | None, overrides: dict[str, Any] | None, base: dict[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """The same as `resolve`, as nested dictionaries of only the settings that an argument gives."""
    tables: dict[str, dict[str, Any]] = {}
    for layer in (nest(base or {}), *_files(preset, recipe), current_names(nest(overrides or {}))):
        tables = over(tables, layer)
    return tables


def over(tables: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Returns `tables` with the settings of `layer` added or replaced, both nested dictionaries.

    A number of updates in `layer` replaces a length in tokens. A time limit without another length replaces both: the
    number of updates becomes UNTIL_TIME_IS_UP.
    """
    train = layer.get("train", {})
    if train.get("minutes") and "iters" not in train and not train.get("tokens"):
        layer = merge(layer, {"train": {"iters": UNTIL_TIME_IS_UP}})
    if "iters" in layer.get("train", {}):
        tables = merge(tables, {"train": {"tokens": 0}})
    return merge(tables, layer)


def given_names(preset: str | None, recipe: str | None, overrides: dict[str, Any], tokens: int) -> set[str]:
    """Returns the dotted names of the settings that the arguments give for a run.

    Those of a preset with a length in tokens count only in a run of this length.

    Args:
        preset, recipe, overrides: As for `resolve`.
        tokens: The length of the run in tokens; 0 if it has another length.
    """
    in_preset, in_recipe = _files(preset, recipe)
    own = in_preset.get("train", {}).get("tokens")
    layers = [in_preset if own in (None, 0, tokens) else {}, in_recipe, current_names(nest(overrides))]
    return {f"{table}.{name}" for layer in layers for table, values in layer.items() for name in values}


def require_one_length(iters: int | None, tokens: int | None) -> None:
    """Raises UserError if `train.iters` and `train.tokens` both give the length of a run. None: it is not given."""
    if tokens and iters is not None:
        raise UserError(
            f"train.iters={iters} and train.tokens={tokens} both give the length of the run; give one of them"
        )


def _files(preset: str | None, recipe: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a preset and of a recipe."""
    return (
        {} if preset is None else load_toml("presets", preset),
        {} if recipe is None else load_toml("presets/recipes", recipe),
    )


def parse_set(text: str) -> tuple[str, Any]:
    """Parses the value of one `--set`: "model.n_head=4" gives ("model.n_head", 4).

    The value is parsed as TOML, but text needs no quotes, and a list of text can be given as "a,b". Only the table and
    the name of the setting are checked here. Types and ranges are checked when the config is made.

    Raises:
        UserError: The text is not TABLE.KEY=VALUE, there is no such setting, or the value is not TOML.
    """
    key, equals, value = text.partition("=")
    if not (equals and "." in key):
        raise UserError(f"--set {text!r} is not TABLE.KEY=VALUE; write it as --set model.n_head=4")
    key, setting = known_setting(key.strip())
    value = value.strip()
    if setting.type is str:
        return key, value.strip("\"'")
    if setting.type == tuple[str, ...] and not value.startswith("["):
        return key, tuple(part.strip() for part in value.split(","))
    if setting.type is float:
        with contextlib.suppress(ValueError):
            return key, float(value)  # .5 is no TOML
    try:
        return key, parse_toml(f"value = {value}", f"--set {key}")["value"]
    except BadFile:
        raise UserError(f"--set {key}: {value!r} is not allowed; {allowed(setting)}") from None


def known_setting(key: str) -> tuple[str, Field]:
    """Returns the current dotted name of a setting, whose name `key` may be an old one, and its field.

    Raises:
        UserError: There is no such setting.
    """
    key = RENAMED.get(key, key)
    if key == MUON_RATE:
        raise UserError(MUON_REPLACED)
    table_name, _, name = key.partition(".")
    known = {f.name: f for f in fields(lookup(TABLES, table_name, "table"))}
    return key, lookup(known, name, f"setting in [{table_name}]", prefix=f"{table_name}.")


def names_of(folder: str) -> list[str]:
    """The names of the TOML files in a resource folder, sorted."""
    return sorted(p.stem for p in resource_dir(folder).glob("*.toml"))


def load_toml(folder: str, name: str) -> dict[str, Any]:
    """Reads a preset or a recipe. Settings have their current names in the result.

    Args:
        folder: The resource folder, "presets" or "presets/recipes".
        name: The name of a file in this folder, without ".toml". Any other name is the path of a TOML file.

    Raises:
        UserError: There is no such name or file, or the file has an unknown setting, a value that is not
            allowed, or two lengths of the run.
        BadFile: The file cannot be read, or is not valid TOML.
    """
    path = Path(name)
    known = {n: resource_dir(folder) / f"{n}.toml" for n in names_of(folder)}
    if name in known or not (path.suffix == ".toml" or path.is_file()):
        kind = {"presets": "preset", "presets/recipes": "recipe"}[folder]
        if name not in known and (path / "run.toml").is_file():
            raise UserError(f"{kind} {name}: is a run folder; name the file with its settings, {path / 'run.toml'}")
        path = lookup(known, name, f"{kind} (or TOML file)")
    tables = read_toml(path)
    try:
        tables = current_names(tables)
        require_settings(tables)
        train = tables.get("train", {})
        require_one_length(train.get("iters"), train.get("tokens"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return tables


def preset_network(name: str) -> ModelConfig:
    """The network of a preset.

    Args:
        name: The name of a preset, or the path of a TOML file.

    Raises:
        UserError: There is no such preset, or one of its settings is not allowed.
        BadFile: The file cannot be read, or has no table [model].
    """
    tables = load_toml("presets", name)
    network = Config.from_dict(tables).model
    if "model" not in tables:
        raise BadFile(f"{name}: has no table [model], so it describes no network; add [model], or leave out --preset")
    return network


def preset_of(config: ModelConfig) -> str | None:
    """The name of the first preset with this architecture, or None. Dropout is not compared."""
    for name in names_of("presets"):
        if preset_network(name).architecture() == config.architecture():
            return name
    return None
