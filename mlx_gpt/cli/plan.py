"""`mlxgpt train --plan`: what a run would cost, from a few measured steps."""

import datetime
import math
import statistics
from pathlib import Path

import click

from mlx_gpt.cli.options import echo_json, note
from mlx_gpt.device.mlx import peak_memory

PROBE_STEPS = 3


def print_plan(start, as_json: bool) -> None:
    """Parameters, memory, tokens, FLOPs and time of the run that would begin at `start`."""
    facts = plan(start)
    if as_json:
        echo_json(facts)
        return
    lines = {
        "parameters": "{parameters:,}",
        "memory": "{state_mb:.1f} MB of weights and the optimizer's state; {peak_gb:.2f} GB at the peak of a step",
        "disk": "2 checkpoints of {state_mb:.1f} MB",
        "tokens": "{tokens:,} in {iters:,} iterations of {tokens_per_step:,}: {epochs} epochs of {train_tokens:,}",
        "FLOPs": "{flops:.3g} in all, {flops_per_step:.3g} an iteration",
        "pace": "{ms_per_iter:,.0f} ms/iter, {tokens_per_second:,.0f} tokens/s (measured now)",
        "ETA": "{eta}",
    }
    units = {
        "state_mb": facts["state_bytes"] / 1e6,
        "peak_gb": facts["peak_bytes"] / 1e9,
        "eta": datetime.timedelta(seconds=round(facts["eta_seconds"])),
    }
    for name, line in lines.items():
        click.echo(f"{name:<12} {line.format(**facts, **units)}")


def plan(start) -> dict:
    """The plan as numbers; sizes in bytes, times in seconds unless named otherwise."""
    from mlx_gpt.cli.session import make_trainer
    from mlx_gpt.model.cost import flops_per_token, num_params

    trainer = make_trainer(start, Path(), note)
    header, train, model = start.header, start.header.config.train, start.header.config.model
    step_seconds = statistics.median(trainer.time_steps(PROBE_STEPS))
    target = trainer.iters_in_budget(step_seconds) if train.minutes and not header.planned else train.iters
    iters = target - header.step
    tokens_per_step = train.sequences_per_step * model.block_size
    flops_per_step = flops_per_token(model, header.vocab_size) * tokens_per_step
    evaluations = math.ceil(iters / train.eval_every)
    return {
        "parameters": num_params(model, header.vocab_size),
        "state_bytes": trainer.state_bytes,
        "peak_bytes": peak_memory(),
        "train_tokens": trainer.train_tokens,
        "val_tokens": trainer.val_tokens,
        "iters": iters,
        "tokens_per_step": tokens_per_step,
        "tokens": iters * tokens_per_step,
        "epochs": round(iters * tokens_per_step / trainer.train_tokens, 2),
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * iters,
        "ms_per_iter": round(step_seconds * 1000, 1),
        "tokens_per_second": round(tokens_per_step / step_seconds, 1),
        "eta_seconds": round(iters * step_seconds + evaluations * trainer.eval_seconds(step_seconds), 1),
    }
