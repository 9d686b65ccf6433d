"""Old names of settings. Checkpoint headers, run.toml files, presets and the command line may contain them."""

from typing import Any

from mlx_gpt.errors import UserError

# Old name -> current name.
RENAMED = {"model.mlp": "model.ffn", "model.mlp_dim": "model.ffn_dim", "optimizer.lr_cuts": "optimizer.max_lr_cuts"}
# This setting was an absolute rate. A rate that does not follow `optimizer.learning_rate` is not supported any more.
MUON_RATE = "optimizer.muon_learning_rate"
MUON_REPLACED = (
    f"{MUON_RATE} has been replaced by optimizer.muon_lr_scale, a multiple of optimizer.learning_rate; "
    "give that, such as 6.67"
)


def current_names(tables: dict[str, Any]) -> dict[str, Any]:
    """Replaces old names of settings in nested dictionaries.

    A table [optimizer] with both `muon_learning_rate` and `learning_rate` gets their ratio as `muon_lr_scale`.

    Raises:
        UserError: A setting has both of its names, or `muon_learning_rate` is given without `learning_rate`.
    """
    renamed = dict(tables)
    for old, new in RENAMED.items():
        (table, old_name), new_name = old.split("."), new.partition(".")[2]
        values = renamed.get(table)
        if not isinstance(values, dict) or old_name not in values:
            continue
        if new_name in values:
            raise UserError(f"{old} is the old name of {new}, and both are given; give only {new}")
        renamed[table] = {new_name if name == old_name else name: value for name, value in values.items()}
    optimizer = renamed.get("optimizer")
    if isinstance(optimizer, dict) and "muon_learning_rate" in optimizer:
        renamed["optimizer"] = _with_muon_scale(dict(optimizer))
    return renamed


def _with_muon_scale(optimizer: dict[str, Any]) -> dict[str, Any]:
    muon, rate = optimizer.pop("muon_learning_rate"), optimizer.get("learning_rate")
    if "muon_lr_scale" in optimizer or not all(isinstance(value, (int, float)) and value for value in (muon, rate)):
        raise UserError(MUON_REPLACED)
    return optimizer | {"muon_lr_scale": muon / rate}


def old_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of old names, from the values of current names. All names are dotted."""
    found = {old: settings[new] for old, new in RENAMED.items() if new in settings}
    rates = [settings.get(name) for name in ("optimizer.learning_rate", "optimizer.muon_lr_scale")]
    if all(isinstance(rate, (int, float)) for rate in rates):
        found[MUON_RATE] = rates[0] * rates[1]
    return found


def with_old_names(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds the old names of settings, so that scripts for earlier versions can read the JSON output."""
    named = {table: dict(values) for table, values in tables.items()}
    dotted = {f"{table}.{name}": value for table, values in tables.items() for name, value in values.items()}
    for old, value in old_values(dotted).items():
        table, _, name = old.partition(".")
        named[table][name] = value
    return named
