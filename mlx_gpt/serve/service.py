"""Between HTTP and the engine: what is served, and which response waits for which text."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.scheduler import Busy, Engine, Job, Piece
from mlx_gpt.serve.prometheus import Metrics
from mlx_gpt.serve.schema import Limits, Reader
from mlx_gpt.web.errors import ApiError

Inbox = asyncio.Queue  # of (index of the text in its response, piece)


class Service:
    """One served model: its engine, its request reader, its metrics. The server starts and ends it as its `Work`.

    Args:
        make_engine: Makes the engine, given `deliver` and `give_up`.
        tokenizer: The model's tokenizer.
        card: What /v1/models says of the model; `meta.n_ctx` is its context.
        limits: What one request may ask for.
    """

    unit = "texts"

    def __init__(self, make_engine: Callable[..., Engine], tokenizer, card: dict, limits: Limits):
        self.engine = make_engine(deliver=self._deliver, give_up=self._give_up)
        self.reader = Reader(tokenizer, card["meta"]["n_ctx"], limits)
        self.card, self.limits = card, limits
        self.metrics = Metrics(self.engine)
        self.failure: EngineFailed | None = None
        self.pieces = tokenizer.pieces
        self._inboxes: dict[Job, tuple[Inbox, int]] = {}

    async def start(self, stop: Callable[[], None]) -> None:
        """Starts the engine; returns when the model is compiled. `stop` is called if the engine gives up."""
        self._loop, self._stop = asyncio.get_running_loop(), stop
        await asyncio.to_thread(self.engine.start)

    def close(self, seconds: float) -> None:
        """Closes the engine."""
        self.engine.close(seconds)

    @property
    def in_flight(self) -> int:
        return self.engine.in_flight

    @property
    def alive(self) -> bool:
        return self.engine.alive

    def no_such_model(self, name: str) -> ApiError:
        """The error for a request that names another model."""
        return ApiError(404, f"model {name!r} is not served; {self.card['id']!r} is", "model", "model_not_found")

    @contextlib.asynccontextmanager
    async def submitted(self, jobs: list[Job]) -> AsyncIterator[Inbox]:
        """Submits jobs, and cancels on exit those that are not finished.

        Yields:
            A queue that receives the jobs' pieces, each with the index of its job.

        Raises:
            ApiError: There is no room, or the server is shutting down.
        """
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

    # Both are called in the engine's thread.

    def _deliver(self, pieces: list[tuple[Job, Piece]]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every response with it
            self._loop.call_soon_threadsafe(partial(self._sort, pieces))

    def _give_up(self, error: Exception) -> None:
        self.failure = EngineFailed(f"the engine failed {self.engine.num_faults} times in a row: {error}")
        self._stop()

    def _sort(self, pieces: list[tuple[Job, Piece]]) -> None:
        for job, piece in pieces:
            if job in self._inboxes:
                inbox, index = self._inboxes[job]
                inbox.put_nowait((index, piece))
