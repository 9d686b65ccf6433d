"""`mlxgpt bench`: measures training and generation, and finds the fastest settings with `--tune`.

The implementations that are measured are called contenders: mlxgpt, PyTorch with and without torch.compile, and a plain
MLX loop.
"""

import signal
import sys
import time

import click

from mlx_gpt import bench, run
from mlx_gpt.bench.contenders import CONTENDERS
from mlx_gpt.cli.options import (
    corpus_option,
    echo_json,
    folder_option,
    heads_option,
    json_option,
    set_option,
    settings_from,
)
from mlx_gpt.config.presets import names_of
from mlx_gpt.files import make_folder


@click.command()
@click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME|FILE",
    default=("model-l",),
    help=f"{', '.join(names_of('presets'))}, or a TOML file; repeatable.",
)
@corpus_option
@click.option("--batch", type=int, default=64, help="Sequences per micro-batch.")
@click.option("--dtype", help="Compute dtype: float32, bfloat16 or float16.")
@heads_option
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, help="Measurements per contender, after a warm-up.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CONTENDERS)),
    help="Measure only mlxgpt and this contender; repeatable.",
)
@click.option("--quick", is_flag=True, help="Use at most 16 sequences and 3 rounds, and leave out torch.compile.")
@click.option(
    "--tune", is_flag=True, help="Find the fastest settings for this device and preset, and store them for train."
)
@click.option(
    "--out",
    metavar="DIR",
    callback=folder_option,
    default="runs/bench",
    help="Folder for bench.json and the chart bench.png.",
)
@set_option
@json_option
def bench_command(presets, rounds, only, quick, tune, out, sets, as_json, **flags):
    """Measure training and generation on this machine.

    \b
    mlxgpt bench --quick
    mlxgpt bench --preset model-s --preset model-l --only PyTorch
    mlxgpt bench --tune --preset model-l

    The contenders are mlxgpt, PyTorch if it is installed, and a plain MLX loop. They take turns in training the same
    model. Before that, each must compute the same loss on the same batch. Dropout is off by default, so that losses can
    be compared.
    """
    # The default action of SIGTERM would leave the contenders' processes running. sys.exit() raises SystemExit instead,
    # so that their cleanup runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def note(line: str) -> None:
        click.echo(f"  {line}", err=True)

    if quick:
        flags["batch"], rounds = min(flags["batch"], 16), min(rounds, 3)
        only = only or ("PyTorch", "plain MLX")
    settings = {"model.dropout": 0.0, **settings_from(sets, flags)}
    if tune:
        _tune(presets, settings, note, as_json)
        return
    make_folder(out)
    cases = {preset: bench.make_case(preset, settings, note) for preset in presets}
    names = [name for name in CONTENDERS if name == "mlxgpt" or not only or name in only]
    record = {"machine": bench.machine.machine(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "presets": {}}
    if not as_json:
        click.echo(bench.report.machine_line(record["machine"]))
    for preset, case in cases.items():
        result = bench.measure(case, names, rounds, note)
        record["presets"][preset] = result
        if not as_json:
            click.echo("\n" + "\n".join(bench.report.lines(preset, result)))
    note("byte pairs: measuring vocabulary training and text encoding")
    record["text"] = bench.text.measure_apart(bench.text.QUICK if quick else bench.text.FULL)
    if not as_json:
        click.echo("\n" + bench.report.text_line(record["text"]))
    files = bench.write_record(record, out, note)
    if as_json:
        echo_json(record)
    else:
        click.echo(f"\nrecord: {', '.join(map(str, files))}")


def _tune(presets, settings: dict, note, as_json: bool) -> None:
    """Finds, stores and prints the fastest settings for each preset."""
    for preset in presets:
        case = bench.make_case(preset, settings, note, use_tuned=False)
        found = bench.tune(case, settings, note)
        path = run.tuned.keep(case.config.model, found)
        if as_json:
            echo_json({"preset": preset, **found, "kept": path})
        else:
            chosen = ", ".join(f"{key}={value}" for key, value in found["settings"].items())
            gain = f"{found['gain']:.2f} x as fast as the defaults" if chosen else "no other setting was faster"
            click.echo(f"{preset}: {chosen or 'the defaults'}, {found['ms_per_iter']:,.1f} ms/iter; {gain}")
            click.echo(f"saved in {path}; train and bench use it, unless MLXGPT_TUNED=off is set")
