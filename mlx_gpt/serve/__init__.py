"""The OpenAI-compatible HTTP API and its web page."""

import socket
from collections.abc import Callable, Sequence

from mlx_gpt.serve.app import make_app
from mlx_gpt.serve.schema import Limits
from mlx_gpt.serve.service import Served, Service, Services
from mlx_gpt.web import server
from mlx_gpt.web.guard import Access


def serve(
    listening: socket.socket,
    models: Sequence[Served],
    *,
    num_slots: int = 16,
    max_waiting: int = 64,
    limits: Limits | None = None,
    access: Access | None = None,
    deadlines: server.Deadlines | None = None,
    log: Callable[[str], None],
    on_ready: Callable[[Callable[[], None]], None],
) -> None:
    """Serves models until a signal arrives or the server is stopped.

    After the shutdown, the signal is raised again, so that its original handler runs.

    Args:
        listening: A socket from web.server.bind().
        models: The models, at least one, with different ids. A request that names no model gets the first one.
        num_slots: Number of texts that each model generates at once.
        max_waiting: Maximum number of texts that wait for a slot of each model.
        limits: Bounds on one request.
        access: The accepted hosts and origins, and the API key.
        deadlines: Time limits for a request to arrive and for a client to read what was sent.
        log: Called with each line of the log; there is one line per request.
        on_ready: Called when the server accepts connections. Its argument is a function that stops the server. Any
            thread may call that function.

    Raises:
        EngineFailed: Generation failed several times in a row, and the scheduler gave up.
    """
    services = Services([Service(served, num_slots, max_waiting, limits or Limits()) for served in models])
    app = make_app(services, access or Access(), log)
    server.serve(app, listening, services, deadlines=deadlines, log=log, on_ready=on_ready)
