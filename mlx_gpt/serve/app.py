"""The web application: OpenAI's routes, randyGPT's, and the page."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from importlib.resources import files
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mlx_gpt.generation.scheduler import Busy, Engine, Job, Piece, merge
from mlx_gpt.serve import answers, schema
from mlx_gpt.serve.guard import Access, Guard, refuse
from mlx_gpt.serve.prometheus import Metrics
from mlx_gpt.serve.schema import ApiError, Limits, Reader

PING_EVERY = 15.0  # seconds of silence in a stream
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
WRITES = {
    "/v1/completions": (schema.CompletionRequest, Reader.completion, answers.CompletionAnswer),
    "/v1/chat/completions": (schema.ChatRequest, Reader.chat, answers.ChatAnswer),
    "/": (schema.RandyRequest, Reader.randy, answers.RandyAnswer),
}

Inbox = asyncio.Queue  # of (index, piece)


class Service:
    """Between HTTP and the engine: who waits for which text."""

    def __init__(
        self, make_engine: Callable[..., Engine], tokenizer, card: dict, limits: Limits, shut: Callable[[], None]
    ):
        self.engine = make_engine(deliver=self._deliver, give_up=self._give_up)
        self.reader = Reader(tokenizer, card["meta"]["n_ctx"], limits)
        self.card, self.limits = card, limits
        self.metrics = Metrics(self.engine)
        self.failure: Exception | None = None
        self.pieces = tokenizer.pieces
        self._inboxes: dict[Job, tuple[Inbox, int]] = {}
        self._shut = shut
        self._loop = asyncio.get_running_loop()

    def _deliver(self, pieces: list[tuple[Job, Piece]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._sort, pieces)

    def _sort(self, pieces: list[tuple[Job, Piece]]) -> None:
        for job, piece in pieces:
            if job in self._inboxes:
                inbox, index = self._inboxes[job]
                inbox.put_nowait((index, piece))

    def _give_up(self, error: Exception) -> None:
        self.failure = error
        self._loop.call_soon_threadsafe(self._shut)

    def no_such_model(self, name: str) -> ApiError:
        return ApiError(404, f"model {name!r} is not served; {self.card['id']!r} is", "model", "model_not_found")

    @contextlib.asynccontextmanager
    async def written(self, jobs: list[Job]) -> AsyncIterator[Inbox]:
        """Has the jobs written while it lasts. Raises ApiError where there is no room."""
        inbox: Inbox = asyncio.Queue()
        self._inboxes |= {job: (inbox, index) for index, job in enumerate(jobs)}
        try:
            try:
                self.engine.submit(jobs)
            except Busy as error:
                raise ApiError(503 if error.for_good else 429, f"{error}; try again", code="busy") from None
            yield inbox
        finally:
            self.engine.cancel(jobs)
            for job in jobs:
                del self._inboxes[job]


class Write:
    """A route that answers with what the engine writes. The client's going ends the work."""

    def __init__(self, service: Service, path: str):
        self.service = service
        self.kind, self.make_jobs, self.answer = WRITES[path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, start = self.service, time.perf_counter()
        request = schema.decode(await _body(scope, receive, service.limits.max_body), self.kind)
        if getattr(request, "model", None) not in (None, service.card["id"]):
            raise service.no_such_model(request.model)
        jobs = await asyncio.to_thread(self.make_jobs, service.reader, request)
        answer = self.answer(request, jobs, service.card["id"], service.pieces)
        async with service.written(jobs) as inbox:
            service.metrics.prompt_tokens.inc(answer.usage([])["prompt_tokens"])
            pieces = self._timed(inbox, len(jobs), start)
            if getattr(request, "stream", None):
                work = _stream(send, answer, pieces, len(jobs))
            else:
                work = _whole(scope, receive, send, answer, pieces, len(jobs))
            await _unless_gone(receive, work)

    async def _timed(self, inbox: Inbox, count: int, start: float) -> AsyncIterator[list[tuple[int, Piece]]]:
        """What came, until all `count` texts are at their end: all that is there at once, a piece a text; [] is a ping.

        Raises ApiError where the engine failed.
        """
        metrics, last, left = self.service.metrics, [start] * count, count
        seen = [False] * count
        while left:
            try:
                async with asyncio.timeout(PING_EVERY):
                    came = [await inbox.get()]
            except TimeoutError:
                yield []
                continue
            while not inbox.empty():
                came.append(inbox.get_nowait())
            now, merged = time.perf_counter(), []
            for index in sorted({index for index, _ in came}):
                piece = merge([piece for i, piece in came if i == index])
                if piece.error:
                    raise ApiError(503, piece.error, code="engine_error")
                if piece.num_drawn:
                    metrics.tokens.inc(piece.num_drawn)
                    (metrics.next_token if seen[index] else metrics.first_token).observe(now - last[index])
                    last[index], seen[index] = now, True
                left -= piece.finish_reason is not None
                merged.append((index, piece))
            yield merged


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body. One that is too large is read on for a while, so that its sender sees the answer."""
    body, size, more = bytearray(), 0, True
    far_too_large = int(Headers(scope=scope).get("content-length", 0)) > 8 * limit
    while more and size <= 8 * limit and not far_too_large:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the request ended before its body did", code="incomplete_body")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit:
            body += part
    if size > limit or far_too_large:
        raise ApiError(413, f"the body is larger than {limit:,} bytes; send less", code="body_too_large")
    return bytes(body)


async def _unless_gone(receive: Receive, work: Coroutine) -> None:
    """Does the work; ends it when the client goes."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = gone, working = asyncio.create_task(until_gone()), asyncio.create_task(work)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(scope: Scope, receive: Receive, send: Send, answer, pieces, count: int) -> None:
    texts: list[list[Piece]] = [[] for _ in range(count)]
    async for came in pieces:
        for index, piece in came:
            texts[index].append(piece)
    await _json(answer.whole([merge(text) for text in texts]))(scope, receive, send)


async def _stream(send: Send, answer, pieces, count: int) -> None:
    async def tell(*events: Any, more: bool = True) -> None:
        body = b"".join(b"data: " + (e if isinstance(e, bytes) else msgspec.json.encode(e)) + b"\n\n" for e in events)
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": more})

    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    drawn = [0] * count
    try:
        await tell(*answer.opening())
        async for came in pieces:
            if not came:
                await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
            for index, piece in came:
                drawn[index] += piece.num_drawn
            await tell(*(frame for index, piece in came for frame in answer.frames(index, piece)))
        await tell(*answer.closing([Piece(num_drawn=n) for n in drawn]), b"[DONE]", more=False)
    except ApiError as error:
        await tell(error.body, more=False)


def make_app(service: Service, access: Access, log: Callable[[str], None]) -> Guard:
    """All routes behind the guard."""
    page = files("mlx_gpt.serve") / "page"

    async def health(_request: Request) -> Response:
        if service.engine.closing:
            raise ApiError(503, "the server is shutting down", code="stopping")
        if not service.engine.healthy:
            raise ApiError(503, "texts are to be written and no token came for a while", code="stalled")
        return _json({"status": "ok", "active": service.engine.num_active, "waiting": service.engine.num_waiting})

    async def models(_request: Request) -> Response:
        return _json({"object": "list", "data": [service.card]})

    async def model(request: Request) -> Response:
        if request.path_params["id"] != service.card["id"]:
            raise service.no_such_model(request.path_params["id"])
        return _json(service.card)

    async def metrics(_request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def show(request: Request) -> Response:
        name, kind = PAGE[request.url.path]
        return Response((page / name).read_bytes(), media_type=kind)

    async def on_api_error(request: Request, error: ApiError) -> Response:
        return refuse(error, request.scope)

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        messages = {404: f"no such route: {ascii(request.url.path)[1:-1]}", 405: f"{request.method} is not taken here"}
        answer = refuse(
            ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), code="bad_route"),
            request.scope,
        )
        answer.headers.update(error.headers or {})
        return answer

    async def on_fault(request: Request, error: Exception) -> Response:
        return refuse(
            ApiError(500, "a fault of the server's; its log names it", code=type(error).__name__), request.scope
        )

    inner = Starlette(
        routes=[
            *(Route(path, show) for path in PAGE),
            *(Route(path, Write(service, path), methods=["POST"]) for path in WRITES),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=access.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key"],
            )
        ],
        exception_handlers={ApiError: on_api_error, HTTPException: on_http_error, Exception: on_fault},
    )
    paths = {*PAGE, *WRITES, "/v1/models", "/health", "/metrics"}

    def count(path: str, status: int) -> None:
        known = path if path in paths else "/v1/models" if path.startswith("/v1/models/") else "other"
        service.metrics.requests.labels(known, status).inc()

    return Guard(inner, access, log, count, open_paths={*PAGE, "/health"})


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
