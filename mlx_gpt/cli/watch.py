"""`mlxgpt watch`: shows runs on a web page, while they train and afterwards."""

import sys
import threading
import time
import webbrowser
from pathlib import Path

import click

from mlx_gpt.cli.access import access_of, access_options, address_of
from mlx_gpt.cli.options import note
from mlx_gpt.errors import UserError
from mlx_gpt.paths import RUNS


@click.command()
@click.argument("paths", nargs=-1, metavar="[RUN|FOLDER]...", type=click.Path(path_type=Path))
@access_options(port=8090)
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@click.option("--log", "logs", is_flag=True, help="Print a line for each request.")
@click.option("--until-input-ends", is_flag=True, hidden=True)
def watch_command(
    paths, host, port, api_key_file, api_key, insecure, hosts, origins, opens, logs, until_input_ends
):  # fmt: skip
    """Show runs on a web page, while they train and afterwards.

    \b
    mlxgpt watch
    mlxgpt watch runs/model-l-shakespeare --open
    mlxgpt watch runs/ /mnt/other/runs --port 8000

    A RUN is a run folder, a FOLDER contains run folders; the default is runs/. The dashboard is a process of its own,
    which only reads: it can be started and ended at any time. Nothing outside of the given folders is read.
    """
    dashboard, server = require_dashboard()
    paths = paths or (RUNS,)
    for path in paths:
        if not path.is_dir():
            what = "not a folder" if path.exists() else "no such folder"
            raise UserError(f"{path}: {what}; name a run folder, or a folder with runs, such as runs/")
    access = access_of(host, api_key_file, api_key, insecure, hosts, origins)
    listening = server.bind(host, port)
    address = address_of(listening, host)

    def on_ready(stop) -> None:
        click.echo(f"{', '.join(map(str, paths))} at {address}  (Ctrl-C ends the dashboard)")
        if until_input_ends:
            threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
        if opens and not webbrowser.open(address):
            note(f"no browser was found; open {address} yourself")

    def log(line: str) -> None:
        note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

    dashboard.serve(listening, paths, access=access, log=log if logs else lambda line: None, on_ready=on_ready)


def require_dashboard():
    """Imports the dashboard and the server. Raises UserError if a package that they need is missing."""
    try:
        from mlx_gpt.watch import dashboard
        from mlx_gpt.web import server

        dashboard.app.plotly_js()
    except ModuleNotFoundError as error:
        raise UserError(
            f"the dashboard needs the package {error.name}; install it with: pip install -e '.[watch]'"
        ) from None
    return dashboard, server


def _stop_at_end_of_input(stop) -> None:
    """Stops the server when stdin is closed: the process that started the dashboard has ended."""
    while sys.stdin.buffer.read(1024):
        pass
    stop()
