"""The dashboard: a web page that shows runs while they train and afterwards."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from mlx_gpt.watch.dashboard.app import make_app
from mlx_gpt.watch.runs import Runs
from mlx_gpt.web import server
from mlx_gpt.web.guard import Access


def serve(
    listening: socket.socket,
    paths: Sequence[Path],
    *,
    access: Access | None = None,
    log: Callable[[str], None] = lambda line: None,
    on_ready: Callable[[Callable[[], None]], None],
) -> None:
    """Serves the dashboard until a signal arrives or the server is stopped.

    Args:
        listening: A socket from web.server.bind().
        paths: Run folders, or folders that contain run folders. Nothing else is read.
        access: The accepted hosts and origins, and the API key.
        log: Called with one line per request.
        on_ready: Called when the server accepts connections. Its argument is a function that stops the server. Any
            thread may call that function.
    """
    server.serve(make_app(Runs(paths), access or Access(), log), listening, log=log, on_ready=on_ready)
