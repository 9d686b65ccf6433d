"""`mlxgpt train --plan`: prints the cost of a run."""

import datetime

import click

from mlx_gpt.cli.options import echo_json
from mlx_gpt.config.budget import passes

# The sizes of the weights of a ternary network.
PACKED = (
    "{packed_mb:.1f} MB on disk, {float_mb:.1f} MB in float32; to generate, {packed_gpu_mb:.1f} MB in the memory of a "
    "GPU, {float_mb:.1f} MB on a CPU"
)
# Tokens of a corpus, and of texts that the model writes itself.
READ = "{tokens:,} in {iters:,} steps of {tokens_per_step:,}; {passes} over {train_tokens:,}"
WRITTEN = "{tokens:,} in {iters:,} steps, if each has {tokens_per_step:,} as the last one measured"
EXPECTED = "about {expected_loss:.2f} nats per token at the end, give or take {expected_error:.2f}"


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
        **({"packed": PACKED} if "packed_bytes" in facts else {}),
        "tokens": READ if facts["epochs"] else WRITTEN,
        "FLOPs": "{flops:.3g} in total, {flops_per_step:.3g} per step",
        "pace": "{ms_per_iter:,.0f} ms/iter, {tokens_per_second:,.0f} tokens/s (measured now)",
        "ETA": "{eta}",
        **({"loss": EXPECTED} if "expected_loss" in facts else {}),
    }
    units = {
        **{name.replace("bytes", "mb"): size / 1e6 for name, size in facts.items() if name.endswith("_bytes")},
        "peak_gb": facts["peak_bytes"] / 1e9,
        "per_token": facts["decoding_bytes_per_token"],
        "per_sequence": facts["decoding_bytes_per_sequence"],
        "passes": passes(facts["tokens"], facts["train_tokens"]),
        "eta": datetime.timedelta(seconds=round(facts["eta_seconds"])),
    }
    for name, line in lines.items():
        click.echo(f"{name:<12} {line.format(**facts, **units)}")
