"""The OpenAI-compatible HTTP API and its web page."""

import socket
from collections.abc import Callable
from functools import partial

from mlx_gpt.generation.scheduler import Scheduler
from mlx_gpt.serve.app import make_app
from mlx_gpt.serve.schema import Limits
from mlx_gpt.serve.service import Service
from mlx_gpt.web import server
from mlx_gpt.web.guard import Access


def serve(
    listening: socket.socket,
    model,
    tokenizer,
    card: dict,
    *,
    num_slots: int = 16,
    max_waiting: int = 64,
    limits: Limits | None = None,
    access: Access | None = None,
    deadlines: server.Deadlines | None = None,
    log: Callable[[str], None],
    on_ready: Callable[[Callable[[], None]], None],
) -> None:
    """Serves a model until a signal arrives or the server is stopped. A signal is raised again at the end.

    Args:
        listening: A socket from web.server.bind().
        model: The network.
        tokenizer: Its tokenizer.
        card: The description of the model that /v1/models returns.
        num_slots: Texts generated at once.
        max_waiting: Texts that may wait for a slot.
        limits: Bounds on one request.
        access: Accepted hosts, origins and key.
        deadlines: Seconds for a request to arrive and for a client to read what was sent.
        log: Receives one line per request.
        on_ready: Called when the server listens, with a function that stops it from any thread.

    Raises:
        EngineFailed: Steps of the scheduler failed several times in a row.
    """
    service = Service(partial(Scheduler, model, num_slots, max_waiting), tokenizer, card, limits or Limits())
    app = make_app(service, access or Access(), log)
    server.serve(app, listening, service, deadlines=deadlines, log=log, on_ready=on_ready)
