"""`mlxgpt bench`: the pace of the training step on this machine."""

import statistics
from pathlib import Path

import click

from mlx_gpt.cli.options import corpus_option, echo_json, json_option, overrides_of, preset_option, set_option


@click.command()
@preset_option
@corpus_option
@click.option("--batch", type=int, help="Sequences per micro-batch.")
@click.option("--accum", type=int, help="Micro-batches per update.")
@click.option("--dtype", help="Compute type: float32, bfloat16 or float16.")
@click.option("--steps", type=click.IntRange(1, 1000), default=10, help="Steps to time, after the one that compiles.")
@set_option
@json_option
def bench(preset, steps, sets, as_json, **flags):
    """ms/iter, tokens/s and peak memory of the training step."""
    from mlx_gpt import backend
    from mlx_gpt.cli.session import Wish, begin, make_trainer

    wish = Wish(preset=preset, recipe=None, overrides=overrides_of(sets, flags), out=None, resume=None, fine_tune=None)
    start = begin(wish, lambda text: click.echo(text, err=True))
    config = start.header.config
    trainer = make_trainer(start, Path())
    times = trainer.time_steps(steps)
    seconds = statistics.median(times)
    tokens = config.train.sequences_per_step * config.model.block_size
    device = backend.device_report()
    facts = {
        "preset": preset or "model-l",
        "batch_size": config.train.batch_size,
        "grad_accum_steps": config.train.grad_accum_steps,
        "block_size": config.model.block_size,
        "dtype": config.train.dtype,
        "steps": steps,
        "ms_per_iter": round(seconds * 1000, 2),
        "ms_per_iter_min": round(min(times) * 1000, 2),
        "ms_per_iter_max": round(max(times) * 1000, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "gflops": round(config.model.flops_per_token(start.header.vocab_size) * tokens / seconds / 1e9, 1),
        "peak_bytes": backend.peak_memory(),
        "device": device["name"],
        "backend": device["backend"],
        "mlx": device["mlx"],
        "blas": device["blas"],
    }
    if as_json:
        echo_json(facts)
        return
    click.echo(
        "{preset}, {batch_size} x {grad_accum_steps} sequences of {block_size}, {dtype}, on {device} "
        "({backend}, MLX {mlx}, BLAS {blas})\n"
        "{ms_per_iter:,.1f} ms/iter (median of {steps}; {ms_per_iter_min:,.1f} to {ms_per_iter_max:,.1f})  "
        "{tokens_per_second:,.0f} tokens/s  {gflops:,.0f} GFLOP/s  peak {peak:.2f} GB".format(
            **facts, peak=facts["peak_bytes"] / 1e9
        )
    )
