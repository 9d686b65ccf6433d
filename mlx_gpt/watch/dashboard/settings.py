"""Where the settings of a run come from: the defaults, a preset, a recipe, or the run itself.

A run folder does not record this. It is found by comparing the settings with the presets and recipes of this version.
"""

import functools
from collections.abc import Mapping
from typing import Any

from mlx_gpt.config.presets import load_toml, names_of
from mlx_gpt.config.schema import Config
from mlx_gpt.watch.compare import dotted

DEFAULT, OWN = "default", "this run"
MOST = 0.75  # share of the settings of a recipe that a run has if it used the recipe; it may have changed some
# Settings of [model] that a preset may leave to the run.
FREE = {"model.dropout"}


def sourced(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of a run, each with its source.

    Args:
        settings: The tables of run.toml.

    Returns:
        Dictionaries with the keys `name`, `value` (as text) and `source`, in the order of run.toml.
    """
    values = dotted(settings)
    default, layers = _known()
    matching = [(source, layer) for source, layer in layers if _matches(source, layer, values, default)]
    found = []
    for name, value in values.items():
        sources = [source for source, layer in matching if name in layer and layer[name] == value]
        source = DEFAULT if name in default and default[name] == value else (sources or [OWN])[0]
        found.append({"name": name, "value": _text(value), "source": source})
    return found


def _matches(source: str, layer: Mapping[str, Any], values: Mapping[str, Any], default: Mapping[str, Any]) -> bool:
    """Whether a run may have used a preset or a recipe: it has the network of the preset, or most of the recipe."""
    if source.startswith("recipe"):
        return sum(values.get(name) == value for name, value in layer.items()) >= MOST * len(layer)
    own = {name for name in layer if name.startswith("model.")} - FREE
    network = {name: value for name, value in (default | layer).items() if name.startswith("model.")}
    equal = all(values.get(name, value) == value for name, value in network.items() if name not in FREE)
    return bool(own) and own <= values.keys() and equal


@functools.cache
def _known() -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The default values, and (source, settings) of all presets and recipes."""
    kinds = {"presets": "preset", "presets/recipes": "recipe"}
    named = [(folder, kind, name) for folder, kind in kinds.items() for name in names_of(folder)]
    layers = [(f"{kind} {name}", _plain(load_toml(folder, name))) for folder, kind, name in named]
    return _plain(Config().to_dict()), layers


def _plain(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, with lists in place of tuples, as a TOML file has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in dotted(tables).items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
