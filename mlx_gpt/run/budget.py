"""Fits the settings of a new run to its length in tokens or in minutes."""

import dataclasses
import tempfile
import time
from pathlib import Path

from mlx_gpt.config.budget import Budget, fitted, iters_of
from mlx_gpt.config.presets import given_names
from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.data.encoding import encode
from mlx_gpt.run.build import Start, make_trainer
from mlx_gpt.run.request import Note, Request, ignore

TIMED_STEPS = 2


def with_budget(start: Start, preset: str, request: Request, note: Note) -> Start:
    """Returns the initial state of a new run with settings that fit its length, see config/budget.py.

    The length is `train.tokens`. If only `train.minutes` ends the run, the length is the number of tokens that fit into
    this time. It is measured by a few steps, whose time is a part of it. A run whose length is a number of updates
    keeps all settings.

    Args:
        start: The initial state. Its header has the settings of the request.
        preset: Name or path of the preset.
        request: The request. The settings that it gives, and those of its recipe, stay as they are.
        note: Called with one line that names the settings that were chosen.
    """
    config = start.header.config
    timed = bool(config.train.minutes) and config.train.iters == UNTIL_TIME_IS_UP
    if not (config.train.tokens or timed):
        return start
    start = dataclasses.replace(
        start, tokens=encode(start.corpus, start.tokenizer, note, config.data.unknown == "refuse")
    )
    began = time.perf_counter()
    tokens = _tokens_in_time(start) if timed else config.train.tokens
    train, val = start.tokens.split(config.data.val_fraction)
    # A split may be empty. make_trainer() then says that the text is too short.
    budget = Budget(tokens=tokens, train_tokens=max(1, len(train)), val_tokens=max(1, len(val)))
    given = given_names(preset, request.recipe, request.base | request.settings, tokens)
    config = fitted(config, given, budget)
    if not timed:
        config = config.replace({"train.iters": iters_of(config, tokens)})
    if line := _described(start.header.config, config):
        note(f"{'about ' if timed else ''}{tokens:,} tokens, {budget.passes:.1f} passes over the text: {line}")
    elapsed = time.perf_counter() - began if timed else 0.0
    return dataclasses.replace(start, header=dataclasses.replace(start.header, config=config, elapsed=elapsed))


def _tokens_in_time(start: Start) -> int:
    """Measures a few steps, and returns the tokens of the steps that take `train.minutes`."""
    train = start.header.config.train
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(start, Path(folder), ignore)
        seconds = min(trainer.time_steps(TIMED_STEPS))
    return max(1, int(train.minutes * 60 / seconds)) * trainer.source.tokens_per_batch


def _described(before: Config, after: Config) -> str:
    """Names the settings that differ, other than the number of updates."""
    old = before.to_dict()
    return ", ".join(
        f"{table}.{name}={value}"
        for table, values in after.to_dict().items()
        for name, value in values.items()
        if value != old[table][name] and name != "iters"
    )
