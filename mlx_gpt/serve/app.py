"""The ASGI application: the routes of OpenAI's API, randyGPT's route, and the web page."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_gpt.generation.job import Job, Piece, merge
from mlx_gpt.serve import answers, fields, schema
from mlx_gpt.serve.answers import Answer
from mlx_gpt.serve.prometheus import ModelMetrics
from mlx_gpt.serve.schema import Reader
from mlx_gpt.serve.service import Inbox, Service, Services
from mlx_gpt.web.errors import HANDLERS, ApiError
from mlx_gpt.web.guard import Access, Guard
from mlx_gpt.web.pages import page_routes

PING_EVERY = 15.0  # seconds without a piece after which a stream sends a comment, to keep the connection open
# The same while a text has no token yet. Only sending detects that a client has left, and a text of such a client must
# not stay in the queue.
PING_EVERY_WAITING = 0.5
# Path -> (type of the request, method of Reader that makes its jobs, type of the response).
TEXT_ROUTES = {
    "/v1/completions": (schema.CompletionRequest, Reader.completion, answers.CompletionAnswer),
    "/v1/chat/completions": (schema.ChatRequest, Reader.chat, answers.ChatAnswer),
    "/": (schema.RandyRequest, Reader.randy, answers.RandyAnswer),
}

MODEL_PATH = "/v1/models/{id:path}"

# Lists of (index of the text, piece), with at most one piece per text. An empty list:
# it is time for a ping, see arriving().
Pieces = AsyncIterator[list[tuple[int, Piece]]]


class TextRoute:
    """A POST route that responds with generated text. Generation stops when the client disconnects.

    Args:
        services: The served models.
        max_body: Maximum size of the body in bytes.
        path: A key of TEXT_ROUTES.
    """

    def __init__(self, services: Services, max_body: int, path: str):
        self.services, self.max_body = services, max_body
        self.kind, self.make_jobs, self.answer = TEXT_ROUTES[path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        body = await _body(scope, receive, self.max_body)
        service, request, jobs = await asyncio.to_thread(self._read, body)  # not in the event loop: a body may be large
        answer = self.answer(request, jobs, service.id, service.token_bytes)
        async with service.submitted(jobs) as inbox:
            service.metrics.prompt_tokens.inc(answer.usage([])["prompt_tokens"])
            pieces = arriving(inbox, len(jobs), start, service.metrics)
            if getattr(request, "stream", None):
                work = _stream(send, answer, pieces, len(jobs))
            else:
                work = _whole(scope, receive, send, answer, pieces, len(jobs))
            await _while_connected(receive, work)

    def _read(self, body: bytes) -> tuple[Service, Any, list[Job]]:
        """Decodes a request, finds its model, and makes its jobs."""
        request = fields.decode(body, self.kind)
        service = self.services.of(getattr(request, "model", None))
        return service, request, self.make_jobs(service.reader, request)


async def arriving(inbox: Inbox, count: int, start: float, metrics: ModelMetrics) -> Pieces:
    """Yields pieces when they arrive, until all `count` texts have ended.

    Pieces of one text that have arrived together are merged. After PING_EVERY seconds without a piece, an empty
    list is yielded; while a text has no token yet, after PING_EVERY_WAITING seconds.

    Args:
        inbox: Receives the pieces.
        count: Number of texts.
        start: Time at which the request arrived, from time.perf_counter().
        metrics: Receives the number of tokens and the times between them.

    Raises:
        ApiError: The scheduler ended a text with an error.
    """
    last, num_open = [start] * count, count
    started = [False] * count
    while num_open:
        try:
            async with asyncio.timeout(PING_EVERY if all(started) else PING_EVERY_WAITING):
                arrived = [await inbox.get()]
        except TimeoutError:
            yield []
            continue
        while not inbox.empty():
            arrived.append(inbox.get_nowait())
        now, merged, error = time.perf_counter(), [], None
        for index in sorted({index for index, _ in arrived}):
            piece = merge([piece for i, piece in arrived if i == index])
            error = error or piece.error
            if piece.num_drawn:
                metrics.tokens.inc(piece.num_drawn)
                (metrics.next_token if started[index] else metrics.first_token).observe(now - last[index])
                last[index], started[index] = now, True
            num_open -= piece.finish_reason is not None
            merged.append((index, piece))
        yield merged  # before the error is raised, so that the text generated before it is sent
        if error:
            raise ApiError(503, error, code="engine_error")


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Reads the body of a request.

    Many clients read a response only after they have sent the whole body. If the server responded early and closed the
    connection, they would find a closed connection instead of the error. A body that is too large is therefore read and
    discarded before the error is sent, up to eight times the limit. A body whose declared length exceeds eight times
    the limit is refused without reading it. Starlette's max_body_size is not used, because it responds at once and in
    plain text.

    Raises:
        ApiError: The body is larger than `limit` bytes, or the client disconnected.
    """
    body, size, more = bytearray(), 0, True
    far_too_large = int(Headers(scope=scope).get("content-length", 0)) > 8 * limit
    while more and size <= 8 * limit and not far_too_large:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the request ended before its body was complete", code="incomplete_body")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit:
            body += part
    if size > limit or far_too_large:
        raise ApiError(413, f"the body is larger than {limit:,} bytes; send a smaller one", code="body_too_large")
    return bytes(body)


async def _while_connected(receive: Receive, work: Coroutine) -> None:
    """Runs `work`. Cancels it, and returns without an error, if the client disconnects first."""

    async def until_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = _, working = asyncio.create_task(until_disconnect()), asyncio.create_task(work)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(scope: Scope, receive: Receive, send: Send, answer: Answer, pieces: Pieces, count: int) -> None:
    """Sends the response as a whole, after all texts have ended."""
    texts: list[list[Piece]] = [[] for _ in range(count)]
    async for arrived in pieces:
        for index, piece in arrived:
            texts[index].append(piece)
    await _json(answer.whole([merge(text) for text in texts]))(scope, receive, send)


async def _stream(send: Send, answer: Answer, pieces: Pieces, count: int) -> None:
    """Sends the response as server-sent events. An error becomes the last event: status 200 has already been sent."""

    async def send_events(*events: Any, more: bool = True) -> None:
        body = b"".join(b"data: " + (e if isinstance(e, bytes) else msgspec.json.encode(e)) + b"\n\n" for e in events)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    num_drawn = [0] * count
    try:
        await send_events(*answer.opening())
        async for arrived in pieces:
            if not arrived:
                await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
            for index, piece in arrived:
                num_drawn[index] += piece.num_drawn
            await send_events(*(frame for index, piece in arrived for frame in answer.frames(index, piece)))
        await send_events(*answer.closing([Piece(num_drawn=n) for n in num_drawn]), b"[DONE]", more=False)
    except ApiError as error:
        await send_events(error.body, more=False)


def make_app(services: Services, access: Access, log: Callable[[str], None]) -> Guard:
    """Makes the ASGI application of a server: all routes, protected by the access rules.

    Args:
        services: The served models.
        access: The access rules.
        log: Called with one line per request.
    """
    page = page_routes(files(__package__) / "page")
    max_body = services.of(None).limits.max_body
    inner = Starlette(
        routes=[
            *page,
            *(Route(path, TextRoute(services, max_body, path), methods=["POST"]) for path in TEXT_ROUTES),
            *_facts(services),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=access.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key"],
            )
        ],
        exception_handlers=HANDLERS,
    )
    page_paths = {route.path for route in page}
    paths = {route.path for route in inner.routes} - {MODEL_PATH}

    def count(path: str, status: int | str) -> None:
        # Unknown paths are counted together. Otherwise a client could create any number of time series.
        known = path if path in paths else "/v1/models" if path.startswith("/v1/models/") else "other"
        services.metrics.requests.labels(known, status).inc()

    return Guard(inner, access, log, {*page_paths, "/health"}, count)


def _facts(services: Services) -> list[Route]:
    """The routes that describe the server and its models."""

    async def health(_request: Request) -> Response:
        schedulers = [service.scheduler for service in services]
        if any(scheduler.closing for scheduler in schedulers):
            raise ApiError(503, "the server is shutting down", code="stopping")
        if not all(scheduler.healthy for scheduler in schedulers):
            raise ApiError(503, "texts are in progress, but no token was generated recently", code="stalled")
        active, waiting = (sum(getattr(s, name) for s in schedulers) for name in ("num_active", "num_waiting"))
        return _json({"status": "ok", "active": active, "waiting": waiting})

    async def models(_request: Request) -> Response:
        return _json({"object": "list", "data": [service.card for service in services]})

    async def model(request: Request) -> Response:
        return _json(services.of(request.path_params["id"]).card)

    async def examples(request: Request) -> Response:
        service = services.of(request.query_params.get("model"))
        return _json({"object": "list", "data": await asyncio.to_thread(service.examples)})

    async def metrics(_request: Request) -> Response:
        return Response(services.metrics.text(), media_type="text/plain; version=0.0.4")

    return [
        Route("/v1/models", models),
        Route(MODEL_PATH, model),
        Route("/v1/examples", examples),
        Route("/health", health),
        Route("/metrics", metrics),
    ]


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
