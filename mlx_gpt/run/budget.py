"""Fits the settings of a new run to its length in tokens or in minutes."""

import dataclasses
import tempfile
import time
from pathlib import Path

from mlx_gpt.config.budget import Budget, UpdateTime, fitted, iters_of, update_of
from mlx_gpt.config.presets import given_names
from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.data.encoding import encode
from mlx_gpt.errors import OutOfRoom
from mlx_gpt.run.build import Start, make_trainer
from mlx_gpt.run.request import Note, Request, ignore

TIMED_STEPS = 2
BATCHES = (1, 4, 16, 64)  # sequences of the updates that are timed
TIMED_SHARE = 0.01  # after an update that takes longer than this share of the time limit, no larger one is timed


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
    given = given_names(preset, request.recipe, request.base | request.settings, config.train.tokens)
    began = time.perf_counter()
    measured = _update_time(start) if timed else None
    tokens = (
        measured.tokens_in(config.train.minutes * 60, update_of(config, given)) if measured else config.train.tokens
    )
    train, val = start.tokens.split(config.data.val_fraction)
    # A split may be empty. make_trainer() then says that the text is too short.
    budget = Budget(
        tokens=tokens,
        train_tokens=max(1, len(train)),
        val_tokens=max(1, len(val)),
        overhead=measured.overhead if measured else 0.0,
    )
    config = fitted(config, given, budget)
    if not timed:
        config = config.replace({"train.iters": iters_of(config, tokens)})
    if line := _described(start.header.config, config):
        note(f"{'about ' if timed else ''}{tokens:,} tokens, {budget.passes:.1f} passes over the text: {line}")
    elapsed = time.perf_counter() - began if timed else 0.0
    return dataclasses.replace(start, header=dataclasses.replace(start.header, config=config, elapsed=elapsed))


def _update_time(start: Start) -> UpdateTime:
    """Measures updates of BATCHES, until one takes twice as long as the first.

    Raises:
        OutOfRoom: An update of one sequence does not fit into memory.
    """
    limit, seconds = TIMED_SHARE * 60 * start.header.config.train.minutes, {}
    for sequences in BATCHES:
        try:
            seconds[sequences] = _seconds(start, sequences)
        except OutOfRoom:
            if not seconds:
                raise
            break
        if seconds[sequences] >= 2 * seconds[1] or seconds[sequences] > limit:
            break
    most = max(seconds)
    more = (seconds[most] - seconds[1]) / max(1, most - 1)  # for each further sequence
    per_sequence = max(more, 0.1 * seconds[most] / most) if most > 1 else seconds[1]
    block_size = start.header.config.model.block_size
    return UpdateTime(fixed=max(0.0, seconds[1] - per_sequence), per_token=per_sequence / block_size)


def _seconds(start: Start, sequences: int) -> float:
    """Measures the seconds of an update with a number of sequences."""
    config = start.header.config.replace({"train.batch_size": sequences, "train.grad_accum_steps": 1})
    start = dataclasses.replace(start, header=dataclasses.replace(start.header, config=config))
    with tempfile.TemporaryDirectory() as folder:
        return min(make_trainer(start, Path(folder), ignore).time_steps(TIMED_STEPS))


def _described(before: Config, after: Config) -> str:
    """Names the settings that differ, other than the number of updates."""
    old = before.to_dict()
    return ", ".join(
        f"{table}.{name}={value}"
        for table, values in after.to_dict().items()
        for name, value in values.items()
        if value != old[table][name] and name != "iters"
    )
