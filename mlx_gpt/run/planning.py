"""Estimates the cost of a run from a few timed steps."""

import math
import statistics
import tempfile
from pathlib import Path

from mlx_gpt.config.budget import Budget
from mlx_gpt.config.law import predicted
from mlx_gpt.device.mlx import peak_memory
from mlx_gpt.model.cost import decoding_bytes, flops_per_token, num_params, packed_sizes
from mlx_gpt.run.build import Start, make_trainer
from mlx_gpt.run.request import Note
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES
from mlx_gpt.train.trainer import Trainer

PROBE_STEPS = 3


def plan(start: Start, note: Note) -> dict[str, int | float]:
    """Estimates what the rest of a run costs: memory, tokens, FLOPs and time.

    Builds the trainer, and times PROBE_STEPS training steps after one that compiles. Nothing is written to
    a run folder.

    Args:
        start: The initial state of the run.
        note: Called with one line for each thing the user should know.

    Returns:
        The values by name:
            parameters: Trained values of the network.
            state_bytes: Size of the weights and the optimizer's state.
            peak_bytes: Measured peak memory of this process's MLX arrays.
            decoding_bytes_per_token, decoding_bytes_per_sequence: Size of the state in decoding, see decoding_bytes().
            train_tokens, val_tokens: Tokens of the two splits.
            iters: Steps that remain.
            tokens_per_step, flops_per_step: Tokens and floating-point operations of one step, without those of drawing
                texts.
            tokens, flops: The same for all remaining steps.
            epochs: How often the remaining steps read the training split, at least 0.01; 0 if the model writes its
                texts itself.
            ms_per_iter: Median time of a step, in milliseconds.
            tokens_per_second: Training tokens per second of a step.
            eta_seconds: Expected time to the end, evaluations included.
            float_bytes, packed_bytes, packed_gpu_bytes: Those of packed_sizes(), for a ternary network.
            expected_loss, expected_error: Those of config/law.py, for a new run for which a law holds.

    Raises:
        UserError, OutOfRoom: The run cannot be trained, as for make_trainer().
    """
    trainer, step_seconds = _timed(start, note)
    header, train, model = start.header, start.header.config.train, start.header.config.model
    iters, seconds = _rest(trainer, step_seconds, start)
    tokens_per_step, is_read = trainer.source.tokens_per_batch, train.objective not in ROLLOUT_OBJECTIVES
    flops_per_step = flops_per_token(model, header.vocab_size) * tokens_per_step
    return {
        "parameters": num_params(model, header.vocab_size),
        "state_bytes": trainer.state_bytes,
        "peak_bytes": peak_memory(),
        **decoding_bytes(model),
        "train_tokens": trainer.source.num_tokens,
        "val_tokens": trainer.validation.num_tokens,
        "iters": iters,
        "tokens_per_step": tokens_per_step,
        "tokens": iters * tokens_per_step,
        "epochs": max(0.01, round(iters * tokens_per_step / trainer.source.num_tokens, 2)) if is_read else 0.0,
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * iters,
        "ms_per_iter": round(step_seconds * 1000, 1),
        "tokens_per_second": round(tokens_per_step / step_seconds, 1),
        "eta_seconds": round(seconds, 1),
        **packed_sizes(model, header.vocab_size),
        **(_expected(start, trainer, iters, note) if is_read else {}),
    }


def _timed(start: Start, note: Note) -> tuple[Trainer, float]:
    """Builds the trainer, and returns it with the median time of a step in seconds."""
    with tempfile.TemporaryDirectory() as folder:  # of what a source writes beside its batches
        trainer = make_trainer(start, Path(folder), note)
        if start.chosen:
            note(start.chosen)
        return trainer, statistics.median(trainer.time_steps(PROBE_STEPS))


def _rest(trainer: Trainer, step_seconds: float, start: Start) -> tuple[int, float]:
    """Returns the steps that remain, and their time in seconds, evaluations included."""
    header, pace = start.header, trainer.pace
    train = header.config.train
    if train.minutes and not header.planned:
        train = pace.fitted(step_seconds, header, header.elapsed, start.fit).train
    iters = train.iters - header.step
    evaluations = math.ceil(iters / train.eval_every)
    return iters, iters * step_seconds + evaluations * pace.next_eval_seconds(step_seconds, header)


def _expected(start: Start, trainer: Trainer, iters: int, note: Note) -> dict[str, float]:
    """The loss that a law predicts for a run of `iters` steps; empty, with a note, if no law holds."""
    header = start.header
    if start.weights is not None:
        note("the loss is not predicted: only runs with new weights were measured")
        return {}
    budget = Budget(
        tokens=iters * trainer.source.tokens_per_batch,
        parameters=num_params(header.config.model, header.vocab_size),
        train_tokens=trainer.source.num_tokens,
        val_tokens=trainer.validation.num_tokens,
    )
    found = predicted(start.fit(header.config.replace({"train.iters": iters})), budget)
    if isinstance(found, str):
        note(found)
        return {}
    return {"expected_loss": round(found.loss, 3), "expected_error": found.error}
