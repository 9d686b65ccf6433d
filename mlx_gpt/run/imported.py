"""Training settings for checkpoints that have none of their own, or whose settings are not used.

These are RGPT files, state_dicts, exported folders, and files that `convert` made of them without reading a corpus.
They continue with a recipe of randyGPT. The files do not tell which version of randyGPT wrote them.
"""

import dataclasses
from typing import Any

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.presets import layered, resolve
from mlx_gpt.config.schema import Config
from mlx_gpt.errors import UserError
from mlx_gpt.run.loading import tokenizer_settings
from mlx_gpt.run.request import Note, Request

RECIPE = "randygpt"
VERSIONS = "--recipe randygpt has the settings of randyGPT 0.9.2, --recipe randygpt-0.9.5 those of 0.9.5 and later"


def has_settings(header: Header) -> bool:
    """Whether a checkpoint's own training settings are used. The sign is the fingerprint of its corpus.

    Every run writes one. An imported checkpoint has none, unless `convert` has read its corpus.
    """
    return header.corpus is not None


def settings_for(checkpoint: Checkpoint, request: Request, note: Note) -> Config:
    """Returns the settings with which a checkpoint without settings is resumed.

    They are those of the recipe `randygpt`, or of `request.recipe`, changed by the settings of the request. The network
    and the tokenizer, if any, are those of the checkpoint.

    Args:
        checkpoint: The checkpoint, as read_checkpoint() returned it for this request.
        request: The request.
        note: Called with one line that names the recipe and the main values of the resulting settings.

    Raises:
        UserError: The request names no corpus, or a setting is wrong.
        Mismatch: The request gives another tokenizer than the checkpoint's own.
    """
    header, recipe = checkpoint.header, request.recipe or RECIPE
    own = _network(header) | tokenizer_settings(header, request.settings)
    # A recipe that names no optimizer keeps AdamW, whose moments an RGPT file holds.
    base = {"optimizer.name": "adamw"} | request.base
    tables = layered(None, recipe, request.settings | own, base)
    if "corpus" not in tables.get("data", {}):
        raise UserError(
            f"{request.resume}: does not contain the name of its text; give the text that it was trained on with "
            "--corpus"
        )
    config = Config.from_dict(tables)
    note(f"{request.resume} holds no training settings, recipe {recipe} is used: {_values(config)}; {VERSIONS}")
    return config


def with_recipe(checkpoint: Checkpoint, note: Note) -> Checkpoint:
    """Adds the settings of the recipe `randygpt` to a checkpoint that holds none. Others stay unchanged."""
    header = checkpoint.header
    if has_settings(header):
        return checkpoint
    config = resolve(None, RECIPE, _network(header) | tokenizer_settings(header, {}))
    note(
        f"training settings for --resume: recipe {RECIPE}, {_values(config)}; those of randyGPT 0.9.5 and later are "
        "taken with: mlxgpt train --resume FILE --recipe randygpt-0.9.5"
    )
    return dataclasses.replace(checkpoint, header=dataclasses.replace(header, config=config))


def _network(header: Header) -> dict[str, Any]:
    """The settings of the checkpoint's network, by dotted name."""
    return {f"model.{k}": v for k, v in header.config.model.architecture().items()}


def _values(config: Config) -> str:
    """The main training settings, in one line."""
    o, train = config.optimizer, config.train
    return (
        f"{o.name}, learning rate {o.learning_rate:g} to {o.min_learning_rate:g}, schedule {o.schedule} with "
        f"{o.warmup_steps} warm-up steps, batch {train.sequences_per_step}, betas {o.beta1:g} and {o.beta2:g}, weight "
        f"decay {o.weight_decay:g}, clipping by {o.clip_mode}, {train.iters:,} steps"
    )
