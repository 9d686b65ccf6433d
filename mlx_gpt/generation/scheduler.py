"""The engine: one thread that owns MLX, and the texts that it writes side by side.

Texts join and leave between two steps. Whatever goes wrong in a step ends the texts it was for, and no other.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.sampling import Sampling, to_draw
from mlx_gpt.generation.slots import Scored, Slots
from mlx_gpt.generation.text import TextWriter

MAX_FAULTS = 3  # in a row, then the engine gives up
STALLED_AFTER = 30.0  # seconds with texts to write and none of them going on
IDLE = (Sampling(temperature=0), 0, 0)  # what a slot draws that is not in use


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text, with what the model held of it: log-probabilities before temperature and cuts."""

    id: int
    logprob: float | None  # None where the model never saw what comes before
    top: list[tuple[int, float]]  # the likeliest ids, likeliest first
    offset: int = 0  # where its characters begin in the text


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain of a text. The last one has a finish_reason, or an error."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    num_drawn: int = 0
    finish_reason: str | None = None
    error: str | None = None


def merge(pieces: Sequence[Piece]) -> Piece:
    """All of them in one."""
    return Piece(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(token for piece in pieces for token in piece.tokens),
        num_drawn=sum(piece.num_drawn for piece in pieces),
        finish_reason=pieces[-1].finish_reason,
        error=pieces[-1].error,
    )


@dataclass(eq=False, kw_only=True)
class Job:
    """One text to write. `echo` is told before it, with what the model held of the prompt's tokens if `scored`."""

    prompt: list[int]
    how: Sampling
    seed: int
    max_tokens: int
    writer: TextWriter
    echo: str = ""
    scored: bool = False
    cancelled: bool = False
    launched: int = 0  # tokens that were drawn or are under way
    position: int = 0  # tokens that the model's state holds
    drawn: list[int] = field(default_factory=list)
    _held: list[tuple[Token, int]] = field(default_factory=list)  # not told yet, each with where it ends

    def window(self, length: int) -> list[int]:
        """The newest tokens."""
        return (self.prompt + self.drawn)[-length:]

    def take(self, token: Token) -> Piece:
        """What a drawn token makes certain. A token is told with the last of its characters, or not if they are cut."""
        writer, begin = self.writer, self.writer.length
        self.drawn.append(token.id)
        text = writer.feed(token.id)
        if len(self.drawn) == self.max_tokens:
            text += writer.end()
        self._held.append((replace(token, offset=len(self.echo) + begin), writer.length))
        if self.over:
            certain = [token for token, _ in self._held if token.offset < len(self.echo) + writer.length]
        else:
            certain = [token for token, end in self._held if end <= writer.released]
        self._held = self._held[len(certain) :]
        return Piece(text, tuple(certain), num_drawn=1, finish_reason=writer.finish_reason)

    def prompt_offsets(self) -> list[int]:
        """Where the characters of each of the prompt's tokens begin."""
        writer = TextWriter(self.writer.tokenizer)
        return [(writer.length, writer.feed(id))[0] for id in self.prompt]

    @property
    def over(self) -> bool:
        return self.cancelled or self.writer.finish_reason is not None


class Busy(Exception):
    """No more texts are taken, for now or for good."""

    def __init__(self, message: str, for_good: bool = False):
        super().__init__(message)
        self.for_good = for_good


class Engine:
    """Writes up to `num_slots` texts at once; others wait, `max_waiting` at most.

    `deliver` is called in the engine's thread with what became of each text, in order; `give_up` at its end, should
    faults not end.
    """

    def __init__(
        self,
        model,
        num_slots: int,
        max_waiting: int,
        deliver: Callable[[list[tuple[Job, Piece]]], None],
        give_up: Callable[[Exception], None],
    ):
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.num_faults = 0
        self._model, self._deliver, self._give_up = model, deliver, give_up
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job | None] = [None] * num_slots
        self._under_way: list[tuple[list[Job | None], Scored]] = []  # drawn, not yet read
        self._turn = 0  # the slot to be looked at first
        self._work = threading.Condition()
        self._closes_at: float | None = None
        self._last_token = time.monotonic()
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # -- called from other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Returns when everything is compiled. Raises what went wrong with that."""
        mx.eval(self._model.weights())  # lazy ones would belong to this thread
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of the jobs or, raising Busy, none."""
        with self._work:
            if self._closes_at is not None:
                raise Busy("the server is shutting down", for_good=True)
            if self.in_flight + len(jobs) > self.num_slots + self.max_waiting:
                raise Busy(f"{self.in_flight} texts are being written or waiting, {len(jobs)} more are too many")
            if not self.in_flight:
                self._last_token = time.monotonic()
            self._waiting.extend(jobs)
            self._work.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Their work stops before the next step; nothing more is sent."""
        with self._work:
            for job in jobs:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def close(self, seconds: float) -> None:
        """Takes no more; what is not at its end in `seconds`, or sooner if that was said, is ended with an error."""
        with self._work:
            self._closes_at = min(time.monotonic() + seconds, self._closes_at or math.inf)
            self._work.notify()

    @property
    def closing(self) -> bool:
        return self._closes_at is not None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_active(self) -> int:
        return sum(job is not None for job in self._jobs)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return self.num_active + self.num_waiting

    @property
    def healthy(self) -> bool:
        """Whether it lives, and texts that are to be written go on."""
        stalled = self.in_flight and time.monotonic() - self._last_token > STALLED_AFTER
        return self.alive and not stalled

    # -- the engine's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._slots = Slots(self._model, self.num_slots)
            self._warm_up()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        faults = 0
        while self._wait():
            try:
                if faults:
                    self._slots.clear()
                if self._pass():
                    faults = 0
            except Exception as error:
                faults += 1
                self.num_faults += 1
                self._under_way = []
                self._fail(filter(None, self._jobs), f"the engine failed ({type(error).__name__}); try again")
                if faults == MAX_FAULTS:
                    self._closes_at = time.monotonic()
                    self._fail(self._waiting, "the engine failed for good")
                    self._give_up(error)
                    return
        self._fail([*filter(None, self._jobs), *self._waiting], "the server is shutting down")

    def _warm_up(self) -> None:
        """Everything that will be traced, traced."""
        length = 1
        while length <= self._slots.block_size:
            mx.eval(self._slots.read(0, [0] * length, to_draw([IDLE])))
            length *= 2
        mx.eval(self._slots.step([0] * self.num_slots, to_draw([IDLE] * self.num_slots)))

    def _wait(self) -> bool:
        """Waits until there is something to do; False at the end."""
        with self._work:
            while not self.in_flight and self._closes_at is None:
                self._work.wait()
            return self.in_flight > 0 and (self._closes_at is None or time.monotonic() < self._closes_at)

    def _pass(self) -> bool:
        """One step of all texts, after one at most was read; whether a token came of it.

        What was under way is looked at while the step is.
        """
        self._leave()
        self._enter()
        due = len(self._under_way)
        self._launch()
        return self._hand_out(due)

    def _leave(self) -> None:
        for slot, job in enumerate(self._jobs):
            if job and job.over:
                self._jobs[slot] = None

    def _enter(self) -> None:
        """Reads one text into its slot: one that waits, or one whose context is full, with the newest half of it.

        Slots take turns, so that neither keeps the other from going on.
        """
        block_size = self._slots.block_size
        slots = [(self._turn + i) % self.num_slots for i in range(self.num_slots)]
        with self._work:
            slot = next((i for i in slots if self._wants_to_be_read(self._jobs[i])), None)
            if slot is None:
                return
            begins = self._jobs[slot] is None
            if begins:
                self._jobs[slot] = self._waiting.popleft()
        self._turn = slot + 1
        if not begins:
            self._hand_out(len(self._under_way))
        self._read(slot, self._jobs[slot], block_size if begins else max(block_size // 2, 1))

    def _wants_to_be_read(self, job: Job | None) -> bool:
        return bool(self._waiting) if job is None else job.position == self._slots.block_size

    def _read(self, slot: int, job: Job, length: int) -> None:
        if job.over:
            return
        tokens = job.window(length)
        if job.echo and not job.launched:
            self._deliver([(job, Piece(job.echo, self._prompt_scores(job, tokens) if job.scored else ()))])
        if job.max_tokens == 0:
            self._deliver([(job, Piece(job.writer.end(), finish_reason=job.writer.finish_reason))])
            return
        scored = self._slots.read(slot, tokens, to_draw([(job.how, job.seed, job.launched)]))
        job.position = len(tokens)
        job.launched += 1
        self._under_way.append(([job], scored))

    def _prompt_scores(self, job: Job, window: list[int]) -> tuple[Token, ...]:
        unseen = len(job.prompt) - len(window) + 1  # what is before the window, and its first token
        scores = [Token(id, None, []) for id in job.prompt[:unseen]]
        scores += _to_tokens(self._slots.score(window)) if len(window) > 1 else []
        return tuple(replace(token, offset=begin) for token, begin in zip(scores, job.prompt_offsets(), strict=True))

    def _launch(self) -> None:
        """One step of every text that has room and wants more."""
        block_size = self._slots.block_size
        rows = [
            job if job and not job.over and 0 < job.position < block_size and job.launched < job.max_tokens else None
            for job in self._jobs
        ]
        if not any(rows):
            return
        draw = to_draw([(job.how, job.seed, job.launched) if job else IDLE for job in rows])
        scored = self._slots.step([job.position if job else 0 for job in rows], draw)
        for job in filter(None, rows):
            job.position += 1
            job.launched += 1
        self._under_way.append((rows, scored))

    def _hand_out(self, count: int) -> bool:
        """Reads the first `count` of what is under way and delivers it; whether there was a token."""
        due, self._under_way = self._under_way[:count], self._under_way[count:]
        pieces = []
        for jobs, scored in due:
            for job, token in zip(jobs, _to_tokens(scored), strict=True):
                if job and not job.over:
                    pieces.append((job, job.take(token)))
        if pieces:
            self._last_token = time.monotonic()
            self._deliver(pieces)
        return bool(pieces)

    def _fail(self, jobs: Iterable[Job], message: str) -> None:
        with self._work:
            ended = [(job, Piece(error=message)) for job in jobs if not job.over]
            for job, _ in ended:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.over)
            self._jobs = [None if job and job.over else job for job in self._jobs]
        self._deliver(ended)


def _to_tokens(scored: Scored) -> list[Token]:
    ids, logprobs, top, top_logprobs = (a.tolist() for a in scored)
    tops = ([*zip(*pair, strict=True)] for pair in zip(top, top_logprobs, strict=True))
    return [Token(*values) for values in zip(ids, logprobs, tops, strict=True)]
