"""`mlxgpt train --plan`: prints the cost of a run."""

import datetime

import click

from mlx_gpt.cli.options import echo_json


def print_plan(facts: dict[str, int | float], as_json: bool) -> None:
    """Prints the dictionary that mlx_gpt.run.plan() returned, as a table or as JSON."""
    if as_json:
        echo_json(facts)
        return
    lines = {
        "parameters": "{parameters:,}",
        "memory": "{state_mb:.1f} MB for weights and optimizer state; {peak_gb:.2f} GB at the peak of a step",
        "decoding": "{per_token:,} bytes of state per token, and {per_sequence:,} per sequence",
        "disk": "2 checkpoints of {state_mb:.1f} MB",
        "tokens": "{tokens:,} in {iters:,} iterations of {tokens_per_step:,}; {epochs} epochs of {train_tokens:,}",
        "FLOPs": "{flops:.3g} in total, {flops_per_step:.3g} per iteration",
        "pace": "{ms_per_iter:,.0f} ms/iter, {tokens_per_second:,.0f} tokens/s (measured now)",
        "ETA": "{eta}",
    }
    units = {
        "state_mb": facts["state_bytes"] / 1e6,
        "peak_gb": facts["peak_bytes"] / 1e9,
        "per_token": facts["decoding_bytes_per_token"],
        "per_sequence": facts["decoding_bytes_per_sequence"],
        "eta": datetime.timedelta(seconds=round(facts["eta_seconds"])),
    }
    for name, line in lines.items():
        click.echo(f"{name:<12} {line.format(**facts, **units)}")
