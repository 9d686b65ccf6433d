"""Connects the HTTP routes to the schedulers: submits jobs and passes their pieces to the responses."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.job import Job, Piece
from mlx_gpt.generation.scheduler import MAX_FAULTS, Busy, Scheduler
from mlx_gpt.serve.prometheus import Metrics, ModelMetrics
from mlx_gpt.serve.schema import Limits, Reader
from mlx_gpt.web.errors import ApiError, cut

Inbox = asyncio.Queue  # of (index of the text in its response, piece)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model to serve.

    Attributes:
        network: The network.
        tokenizer: Its tokenizer.
        card: Its description, which /v1/models returns. `id` is its name, and `meta.n_ctx` the length of its context.
        examples: Returns lines of its training text, as prompts.
    """

    network: Any
    tokenizer: Any
    card: dict
    examples: Callable[[], list[str]] = list


class Service:
    """One served model: its scheduler and its request reader.

    Args:
        served: The model.
        num_slots: Number of texts generated at once.
        max_waiting: Maximum number of texts that wait for a slot.
        limits: Limits of one request.

    Attributes:
        metrics: The counters of the model. Services sets them.
        failure: The error of a scheduler that gave up; None before.
        token_bytes: The bytes of each token id.
    """

    metrics: ModelMetrics

    def __init__(self, served: Served, num_slots: int, max_waiting: int, limits: Limits):
        self.scheduler = Scheduler(served.network, num_slots, max_waiting, deliver=self._deliver, give_up=self._give_up)
        self.card, self.id = served.card, served.card["id"]
        self.limits = replace(limits, max_choices=min(limits.max_choices, self.scheduler.capacity))
        self.reader = Reader(served.tokenizer, self.card["meta"]["n_ctx"], self.limits)
        self.examples = functools.cache(served.examples)
        self.failure: EngineFailed | None = None
        self.token_bytes = served.tokenizer.pieces
        self._inboxes: dict[Job, tuple[Inbox, int]] = {}  # used only in the thread of the event loop

    async def start(self, stop: Callable[[], None]) -> None:
        """Starts the scheduler, and returns when the model is compiled. `stop` is called if the scheduler gives up."""
        self._loop, self._stop = asyncio.get_running_loop(), stop
        await asyncio.to_thread(self.scheduler.start)

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


class Services:
    """All served models, by their ids. Implements web.server.Work.

    Args:
        services: The models, at least one. A request that names no model gets the first one.
    """

    unit = "texts"

    def __init__(self, services: Sequence[Service]):
        self._all = {service.id: service for service in services}
        self.metrics = Metrics({service.id: service.scheduler for service in services})
        for service in services:
            service.metrics = self.metrics.of(service.id)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._all.values())

    def of(self, id: str | None) -> Service:
        """The model with this id, or the first one if it is None. Raises ApiError with status 404 if there is none."""
        if id is None:
            return next(iter(self))
        if id not in self._all:
            known = ", ".join(map(repr, self._all))
            message = f"model {cut(repr(id))} is not served here; choose {known}"
            raise ApiError(404, message, "model", "model_not_found")
        return self._all[id]

    async def start(self, stop: Callable[[], None]) -> None:
        """Starts all schedulers, one after the other. `stop` is called if one of them gives up."""
        for service in self:
            await service.start(stop)

    def close(self, seconds: float) -> None:
        """Closes all schedulers. Texts that are in flight after `seconds` end with an error."""
        for service in self:
            service.scheduler.close(seconds)

    @property
    def failure(self) -> EngineFailed | None:
        return next((service.failure for service in self if service.failure), None)

    @property
    def in_flight(self) -> int:
        return sum(service.scheduler.in_flight for service in self)

    @property
    def alive(self) -> bool:
        return any(service.scheduler.alive for service in self)
