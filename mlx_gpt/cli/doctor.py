"""`mlxgpt doctor`: describes this machine and its libraries, and finds problems that make training slow."""

import click

from mlx_gpt import device
from mlx_gpt.cli.options import echo_json, json_option


@click.command()
@json_option
def doctor_command(as_json):
    """Print device, versions, BLAS, memory limits, and the measured speed of a matrix product."""
    facts = device.device_report() | {"matmul_gflops": round(device.matmul_rate(), 1)}
    if facts["backend"] == "cpu":
        facts["numpy_matmul_gflops"] = round(device.numpy_matmul_rate(), 1)
    advice = device.weaknesses()
    if as_json:
        echo_json(facts | {"advice": advice})
        return
    for name, value in facts.items():
        click.echo(f"{name:<20} {value}")
    click.echo("\n".join(advice) or "no problems found")
