"""Connects the HTTP routes to the scheduler: submits jobs and passes their pieces to the responses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.job import Job, Piece
from mlx_gpt.generation.scheduler import MAX_FAULTS, Busy, Scheduler
from mlx_gpt.serve.prometheus import Metrics
from mlx_gpt.serve.schema import Limits, Reader
from mlx_gpt.web.errors import ApiError, cut

Inbox = asyncio.Queue  # of (index of the text in its response, piece)


class Service:
    """A served model: its scheduler, its request reader and its metrics. Implements web.server.Work.

    Args:
        make_scheduler: Called with the arguments `deliver` and `give_up` of Scheduler. Returns the scheduler.
        tokenizer: The model's tokenizer.
        card: The description of the model that /v1/models returns. `meta.n_ctx` is the length of its context.
        limits: Limits of one request.

    Attributes:
        failure: The error of a scheduler that gave up; None before.
        token_bytes: The bytes of each token id.
    """

    unit = "texts"

    def __init__(self, make_scheduler: Callable[..., Scheduler], tokenizer, card: dict, limits: Limits):
        self.scheduler = make_scheduler(deliver=self._deliver, give_up=self._give_up)
        self.card = card
        self.limits = replace(limits, max_choices=min(limits.max_choices, self.scheduler.capacity))
        self.reader = Reader(tokenizer, card["meta"]["n_ctx"], self.limits)
        self.metrics = Metrics(self.scheduler)
        self.failure: EngineFailed | None = None
        self.token_bytes = tokenizer.pieces
        self._inboxes: dict[Job, tuple[Inbox, int]] = {}  # used only in the thread of the event loop

    async def start(self, stop: Callable[[], None]) -> None:
        """Starts the scheduler, and returns when the model is compiled. `stop` is called if the scheduler gives up."""
        self._loop, self._stop = asyncio.get_running_loop(), stop
        await asyncio.to_thread(self.scheduler.start)

    def close(self, seconds: float) -> None:
        """Closes the scheduler. Texts that are in flight after `seconds` end with an error."""
        self.scheduler.close(seconds)

    @property
    def in_flight(self) -> int:
        return self.scheduler.in_flight

    @property
    def alive(self) -> bool:
        return self.scheduler.alive

    def no_such_model(self, name: str) -> ApiError:
        """The error for a request that names another model."""
        message = f"model {cut(repr(name))} is not served here; choose {self.card['id']!r}"
        return ApiError(404, message, "model", "model_not_found")

    @contextlib.asynccontextmanager
    async def submitted(self, jobs: list[Job]) -> AsyncIterator[Inbox]:
        """Submits jobs. On exit, jobs that have not ended are cancelled.

        Yields:
            A queue that receives (index of the job, piece) for every piece of the jobs.

        Raises:
            ApiError: Too many texts are in progress (status 429), or the server is shutting down (status 503).
        """
        inbox: Inbox = asyncio.Queue()
        self._inboxes |= {job: (inbox, index) for index, job in enumerate(jobs)}
        try:
            try:
                self.scheduler.submit(jobs)
            except Busy as error:
                raise ApiError(503 if error.for_good else 429, f"{error}; try again later", code="busy") from None
            yield inbox
        finally:
            self.scheduler.cancel(jobs)
            for job in jobs:
                del self._inboxes[job]

    # The scheduler's thread calls the next two methods.

    def _deliver(self, pieces: list[tuple[Job, Piece]]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed, so no response is waiting
            self._loop.call_soon_threadsafe(partial(self._route, pieces))

    def _give_up(self, error: Exception) -> None:
        self.failure = EngineFailed(f"the engine failed {MAX_FAULTS} times in a row: {error}")
        self._stop()

    def _route(self, pieces: list[tuple[Job, Piece]]) -> None:
        """Puts pieces into the queues of their responses. Pieces of a response that has ended are dropped."""
        for job, piece in pieces:
            if job in self._inboxes:
                inbox, index = self._inboxes[job]
                inbox.put_nowait((index, piece))
