"""Typed, range-checked tables of settings.

A table is a frozen dataclass whose fields are made by `setting`. Types and ranges are checked when a table is made.
"""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field, fields
from typing import Any

from mlx_gpt.errors import UserError


def setting(default, help: str, *, low=None, high=None, choices=None):
    """Declares a setting: a field of a Table.

    Args:
        default: The default value.
        help: The meaning of the setting and its unit.
        low, high: The range of a number, both ends included. None is no limit.
        choices: The allowed values of a text.
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A group of settings. Types and ranges are checked when an instance is made.

    Raises:
        UserError: A value has the wrong type, or is out of range.
    """

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f"{self.table_name()}.{f.name}", getattr(self, f.name), f))

    @classmethod
    def table_name(cls) -> str:
        """The name of the table in TOML files and dotted names: "model" for ModelConfig."""
        return cls.__name__.removesuffix("Config").lower()


def lookup(known: dict, name: str, kind: str, prefix: str = ""):
    """Returns known[name], with a helpful error for an unknown name.

    Args:
        known: Values by name.
        name: The requested name.
        kind: What the values are, for the error message, as "preset".
        prefix: Text that the error message puts before each name, as "model.ffn=".

    Raises:
        UserError: There is no such name. The message suggests the most similar name, or lists all names.
    """
    if name in known:
        return known[name]
    folded = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"did you mean {prefix}{folded[near[0]]}?" if near else f"choose from {', '.join(known)}"
    raise UserError(f"unknown {kind} {prefix}{name}; {hint}")


def allowed(f: dataclasses.Field) -> str:
    """Describes the allowed values of a setting, for error messages."""
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if choices:
        return f"choose from {', '.join(choices)}"
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    kind = kinds.get(f.type, "one or more texts that are not empty")
    if low is not None and high is not None:
        return f"give {kind} from {low} to {high}"
    return f"give {kind}" + (f" of at least {low}" if low is not None else "")


def checked(name: str, value, f: dataclasses.Field):
    """Returns `value` in the type of the field. An int is accepted for a float, or for text with this choice,
    a float such as 5e5 for an int, and a list for a tuple.

    Raises:
        UserError: The value is not allowed. The message has the key, the value and the allowed values.
    """
    shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else ""
    shown = shown or repr(value)
    wrong = UserError(f"{name}={shown} is not allowed; {allowed(f)}")
    if f.type == tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) and v for v in value) or not value:
            raise wrong
        return tuple(value)
    if f.type is float and type(value) is int:
        value = float(value)
    if f.type is int and type(value) is float and value.is_integer():  # as 5e5
        value = int(value)
    if f.type is str and type(value) is int and str(value) in (f.metadata["choices"] or ()):
        value = str(value)
    # isinstance() would accept True for an int, because bool is a subclass of int.
    if type(value) is not f.type or (f.type is float and not math.isfinite(value)):
        raise wrong
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if (low is not None and value < low) or (high is not None and value > high) or (choices and value not in choices):
        raise wrong
    return value


def toml_value(value) -> str:
    """Formats a value as TOML. The JSON forms of text, numbers and booleans are valid TOML."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def merge(under: dict, over: dict) -> dict:
    """Returns `under` with the values of `over` added or replaced, one key at a time within each table.

    >>> merge({"model": {"n_head": 8, "n_layer": 6}}, {"model": {"n_head": 4}})
    {'model': {'n_head': 4, 'n_layer': 6}}
    """
    merged = dict(under)
    for name, values in over.items():
        both = isinstance(values, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **values} if both else values
    return merged


def nest(dotted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Converts dotted names to nested dictionaries: {"a.b": 1} gives {"a": {"b": 1}}."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in dotted.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables
