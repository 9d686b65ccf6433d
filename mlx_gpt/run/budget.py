"""Fits the settings of a new run to its length in tokens or in minutes."""

import dataclasses
import functools
import tempfile
import time
from pathlib import Path

from mlx_gpt.config.budget import (
    BATCH,
    MICRO_BATCH_TOKENS,
    Budget,
    UpdateTime,
    chosen_names,
    fitted,
    passes,
    tokens_per_update,
    with_counts,
    with_iters,
)
from mlx_gpt.config.presets import given_names
from mlx_gpt.config.schema import Config
from mlx_gpt.data.encoding import encode
from mlx_gpt.device.mlx import reset_peak_memory
from mlx_gpt.errors import OutOfRoom
from mlx_gpt.model.cost import num_params
from mlx_gpt.run.build import Start, make_trainer, require_known_length
from mlx_gpt.run.request import Note, Request, ignore
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES

TIMED_STEPS = 2
BATCHES = (1, 4, 16, 64)  # sequences of the updates that are timed
TIMED_SHARE = 0.01  # after an update that takes longer than this share of the time limit, no larger one is timed


def with_budget(start: Start, preset: str, request: Request, processes: int, note: Note) -> Start:
    """Returns the initial state of a new run with settings that fit its length, see config/budget.py.

    The length is `train.tokens`, but at most the number of tokens that fit into `train.minutes`. This number is
    measured by a few updates, whose time is a part of the limit. A run whose length is a number of updates keeps all
    settings. So does a run whose objective is one of rewards, which has no length in tokens.

    Args:
        start: The initial state. Its header has the settings of the request.
        preset: Name or path of the preset.
        request: The request. The settings that it gives, and those of its recipe, stay as they are.
        processes: The number of processes that train together. Only this one is timed.
        note: Called with one line for each thing the user should know.

    Raises:
        UserError: `train.tokens` means too many updates, or is given together with an objective of rewards.
        OutOfRoom: An update of one sequence does not fit into memory.
    """
    config = start.header.config
    require_known_length(config, request.settings)
    if config.train.objective in ROLLOUT_OBJECTIVES:
        return _with(start, config.replace({"train.tokens": 0}))
    given = given_names(preset, request.recipe, request.base | request.settings, config.train.tokens)
    # A time limit may decide the length of the run.
    is_timed = bool(config.train.minutes) and (config.train.tokens > 0 or config.train.length is None)
    if not (config.train.tokens or is_timed) or not chosen_names(config, given):
        return _with(start, with_iters(config))
    tokens = encode(start.corpus, start.tokenizer, note, config.data.unknown == "refuse")
    start = dataclasses.replace(start, tokens=tokens)
    train, val = tokens.split(config.data.val_fraction)
    # A split may be empty. make_trainer() then says that the text is too short.
    budget = Budget(
        tokens=config.train.tokens,
        parameters=num_params(config.model, start.header.vocab_size),
        train_tokens=max(1, len(train)),
        val_tokens=max(1, len(val)),
        processes=processes,
    )
    began = time.perf_counter()
    if is_timed:
        budget = _limited(start, budget, given)
    longest = config.optimizer.warmup_steps
    config = with_iters(fitted(config, given, budget))
    elapsed = time.perf_counter() - began if is_timed else 0.0
    start = _with(start, config, _described(config, given, budget), elapsed)
    return dataclasses.replace(start, fit=functools.partial(_refitted, chosen_names(config, given), budget, longest))


def _refitted(names: set[str], budget: Budget, warmup_steps: int, config: Config) -> Config:
    """The settings after `train.iters` has changed, with a warm-up of at most `warmup_steps`; see with_counts()."""
    tokens = config.train.iters * tokens_per_update(config)
    config = config.replace({"optimizer.warmup_steps": warmup_steps})
    return with_counts(config, names, dataclasses.replace(budget, tokens=tokens))


def _limited(start: Start, budget: Budget, given: set[str]) -> Budget:
    """Returns the budget with at most as many tokens as fit into the time limit, by measured updates."""
    config = start.header.config
    measured = _update_time(start)
    reset_peak_memory()  # the run itself may have smaller updates
    update = tokens_per_update(config) if given & BATCH else None
    length = measured.tokens_in(60 * config.train.minutes, update)
    if 0 < budget.tokens <= length:
        return budget
    return dataclasses.replace(budget, tokens=length, overhead=measured.overhead)


def _with(start: Start, config: Config, chosen: str = "", elapsed: float = 0.0) -> Start:
    """Returns the initial state with other settings, and seconds that are spent already."""
    header = dataclasses.replace(start.header, config=config, elapsed=elapsed)
    return dataclasses.replace(start, header=header, chosen=chosen)


def _described(config: Config, given: set[str], budget: Budget) -> str:
    """Describes the length of the run, and names the settings that follow from it."""
    values = ", ".join(f"{name}={config.get(name)}" for name in sorted(chosen_names(config, given)))
    tokens = f"{budget.tokens:,} tokens"
    if budget.tokens != config.train.tokens:
        tokens = f"about {float(f'{budget.tokens:.3g}'):,.0f} tokens without evaluations"
    return f"{tokens}, {passes(budget.tokens, budget.train_tokens)} over the text: {values}"


def _update_time(start: Start) -> UpdateTime:
    """Measures updates of more and more sequences (BATCHES), which ends the first time that one of these holds.

    An update takes twice as long as the first one, or longer than TIMED_SHARE of the time limit. The next one has more
    than MICRO_BATCH_TOKENS tokens, or does not fit into memory.
    """
    config = start.header.config
    block_size, limit, seconds = config.model.block_size, TIMED_SHARE * 60 * config.train.minutes, {}
    for sequences in BATCHES:
        if sequences > 1 and sequences * block_size > MICRO_BATCH_TOKENS:
            break
        try:
            seconds[sequences] = _seconds(start, sequences)
        except OutOfRoom:
            if not seconds:
                raise
            break
        if seconds[sequences] >= 2 * seconds[1] or seconds[sequences] > limit:
            break
    return _line(seconds, block_size)


def _line(seconds: dict[int, float], block_size: int) -> UpdateTime:
    """The line through the seconds of updates of one sequence, and of the largest measured number.

    With one measurement, all of its time is that of the sequence. A further sequence takes at least a tenth of the mean
    time of one.
    """
    most = max(seconds)
    if most == 1:
        return UpdateTime(fixed=0.0, per_token=seconds[1] / block_size)
    further = max((seconds[most] - seconds[1]) / (most - 1), 0.1 * seconds[most] / most)
    return UpdateTime(fixed=max(0.0, seconds[1] - further), per_token=further / block_size)


def _seconds(start: Start, sequences: int) -> float:
    """Measures the seconds of an update with a number of sequences."""
    config = start.header.config.replace({"train.batch_size": sequences, "train.grad_accum_steps": 1})
    with tempfile.TemporaryDirectory() as folder:
        return min(make_trainer(_with(start, config), Path(folder), ignore).time_steps(TIMED_STEPS))
