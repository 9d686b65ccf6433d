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
    """A field of a Table: its default, its meaning with its unit, and the values it takes."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A group of settings. Types and ranges are checked when it is made.

    Raises:
        UserError: A value has another type, or is out of its range.
    """

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f"{self.table_name()}.{f.name}", getattr(self, f.name), f))

    @classmethod
    def table_name(cls) -> str:
        return cls.__name__.removesuffix("Config").lower()


def lookup(known: dict, name: str, kind: str, prefix: str = ""):
    """known[name].

    Args:
        known: The rows of a table by name.
        name: What was asked for.
        kind: What the table holds, for the error.
        prefix: What precedes a name where it is written, as "model.ffn=".

    Raises:
        UserError: There is no such name. The error names the nearest one, or all.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{near[0]}?" if near else f"choose from {', '.join(known)}"
    raise UserError(f"unknown {kind} {prefix}{name}; {hint}")


def allowed(f: dataclasses.Field) -> str:
    """The values that a setting takes, in words."""
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if choices:
        return f"choose from {', '.join(choices)}"
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(f.type, "a list of text")
    if low is not None and high is not None:
        return f"give {kind} from {low} to {high}"
    return f"give {kind}" + (f" of at least {low}" if low is not None else "")


def _checked(name: str, value, f: dataclasses.Field):
    """`value` in the field's own type, or a UserError that names the key, the value and what is allowed."""
    shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) and value else repr(value)
    wrong = UserError(f"{name}={shown} is not allowed; {allowed(f)}")
    if f.type == tuple[str, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) and v for v in value) or not value:
            raise wrong
        return tuple(value)
    if f.type is float and type(value) is int:
        value = float(value)
    if type(value) is not f.type or (f.type is float and not math.isfinite(value)):
        raise wrong
    low, high, choices = f.metadata["low"], f.metadata["high"], f.metadata["choices"]
    if (low is not None and value < low) or (high is not None and value > high) or (choices and value not in choices):
        raise wrong
    return value


def toml_value(value) -> str:
    """A setting's value as TOML writes it."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def merge(under: dict, over: dict) -> dict:
    """`under`, with keys of `over` replaced table by table."""
    merged = dict(under)
    for name, values in over.items():
        both = isinstance(values, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **values} if both else values
    return merged


def nest(dotted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"a.b": 1} -> {"a": {"b": 1}}"""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in dotted.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return tables
