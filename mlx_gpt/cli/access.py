"""Options of commands that serve a web page: where to listen, and who may connect."""

import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import click

from mlx_gpt.cli.options import note
from mlx_gpt.errors import BadFile, UserError

MAX_KEY = 4096  # characters of the first line of the file of --api-key-file


def access_options(port: int) -> Callable[[Callable], Callable]:
    """A decorator that adds the options --host, --port, and those of access_of().

    Args:
        port: The default of --port.
    """
    options = [
        click.option(
            "--host", default="127.0.0.1", help="Address to listen on; any but a loopback address requires an API key."
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, help="Port to listen on; 0 chooses a free one."
        ),
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path),
            help="File whose first line is the API key; requests must then send it, except for the page (and serve's "
            "/health).",
        ),
        click.option("--api-key", envvar="MLXGPT_API_KEY", hidden=True),
        click.option("--insecure", is_flag=True, help="Allow an address other than loopback without an API key."),
        click.option(
            "--allow-host", "hosts", multiple=True, help="Accept requests for this host name too; repeatable."
        ),
        click.option(
            "--allow-origin",
            "origins",
            multiple=True,
            help="Accept requests from web pages of this origin too; repeatable.",
        ),
    ]

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def access_of(
    host: str, key_file: Path | None, key: str | None, insecure: bool, hosts: tuple[str, ...], origins: tuple[str, ...]
):
    """Builds the access rules.

    Raises:
        UserError: An option is invalid, or a public address has neither a key nor --insecure.
        BadFile: The file of the key cannot be used.
    """
    from mlx_gpt.web.guard import Access, is_loopback

    key = _key(key_file, key)
    if not host:
        raise UserError("--host is empty; give an address, such as 127.0.0.1")
    for given in hosts:
        if not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:]+\]", given):
            raise UserError(f"--allow-host {given!r} is not a host name; give only the name, such as mac.example")
    for given in origins:
        if not re.fullmatch(r"https?://[^/\s]+", given):
            raise UserError(
                f"--allow-origin {given!r} is not an origin; give scheme and host, such as https://mac.example"
            )
    if not is_loopback(host) and key is None and not insecure:
        raise UserError(
            f"--host {host} can be reached from other machines; set an API key with --api-key-file or MLXGPT_API_KEY, "
            "or allow access without one with --insecure"
        )
    return Access(host=host, key=key, hosts=tuple(map(str.lower, hosts)), origins=origins)


def address_of(listening: socket.socket, host: str) -> str:
    """Returns the server's URL. Its host is `host`, or the machine's name if the server listens on all addresses."""
    shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"


def _key(path: Path | None, key: str | None) -> str | None:
    """Returns the API key, or None if there is none. Prints a warning if other users can read its file.

    Args:
        path: The file of --api-key-file, which takes precedence. The key is its first line.
        key: The value of MLXGPT_API_KEY.

    Raises:
        BadFile: The file cannot be read, or its first line is empty or has more than MAX_KEY characters.
        UserError: There is no such file, or the key is empty, or it has spaces or characters that an HTTP header cannot
            hold.
    """
    if path:
        try:
            with path.open() as file:
                key, mode = file.readline(MAX_KEY + 1).strip(), os.fstat(file.fileno()).st_mode
        except FileNotFoundError:
            raise UserError(f"--api-key-file {path}: no such file; write the key into a text file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(
                f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not text'}; give a text file"
            ) from None
        if len(key) > MAX_KEY:
            raise BadFile(f"--api-key-file {path}: has more than {MAX_KEY} characters; give a shorter key")
        if not key:
            raise BadFile(f"--api-key-file {path}: the first line is empty; write the key into it")
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            note(f"warning: --api-key-file {path}: other users can read it; run chmod 600 {path}")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
        raise UserError(
            "the API key is empty, or has spaces or characters that an HTTP header cannot hold; choose another key"
        )
    return key
