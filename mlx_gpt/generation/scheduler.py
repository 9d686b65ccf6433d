"""Continuous batching: one thread owns MLX and generates several texts at once, each in a slot of the batch.

A slot is one row of the batch. A step is one call of the compiled function that draws the next token of every text.
Texts join and leave the batch between two steps.

The thread runs a loop. One iteration is called a pass. Each pass

1. releases the slots of finished texts, and grows or shrinks the batch,
2. fills at most one slot, with a waiting prompt or with the newer half of its full context, and draws the next token,
3. launches one step for all texts, and
4. delivers the tokens of the step that the previous pass launched, and the token of the slot filled in this pass. (A
   pass that reads a full context again delivers the tokens of the previous step first, because it needs their ids.)

The device computes the new step while the host converts the ids of the previous step into text. If a pass fails, every
text in a slot ends with an error. Waiting texts are not affected, unless the scheduler gives up (see MAX_FAULTS).

Example with two slots. Text A has two tokens, a1 and a2; B has four; C has two, and waits until a slot is free:

    pass   released   prompt read         step launched   delivered
    1                 A in slot 0: a1     a2              a1
    2                 B in slot 1: b1     b2              a2, the last of A; b1
    3      slot 0     C in slot 0: c1     b3, c2          b2; c1
    4                                     b4              b3; c2, the last of C
    5      slot 0                                         b4, the last of B

A token that a step draws is delivered in the next pass. The end of a text at a stop string or EOS is therefore detected
only after the text's next step was launched. The token of that step is discarded.
"""

import gc
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from mlx_gpt.device.mlx import mx
from mlx_gpt.generation.job import Job, Piece, Token
from mlx_gpt.generation.penalties import PenaltyBatch, to_batch
from mlx_gpt.generation.sampling import Draw, to_draw
from mlx_gpt.generation.slots import IDLE, Scored, Slots

MAX_FAULTS = 3  # the scheduler gives up after this many failed passes with no delivered token between them
STALLED_AFTER = 30.0  # the scheduler is unhealthy after this many seconds without a token, while texts are in flight
SHRINK_AFTER = 32  # the batch shrinks after this many passes in a row in which a smaller one would have been enough


class Busy(Exception):
    """Jobs were not accepted. If `for_good`, the scheduler is closed; otherwise, too many jobs are in flight."""

    def __init__(self, message: str, for_good: bool = False):
        super().__init__(message)
        self.for_good = for_good


class Scheduler:
    """Generates up to `num_slots` texts at once, in a thread of its own.

    A job is in flight from submit() until it has ended: it waits for a slot or is being generated.

    Args:
        model: The network.
        num_slots: Largest number of rows of the batch.
        max_waiting: Maximum number of jobs in flight beyond num_slots.
        deliver: Called in the scheduler's thread with a list of (job, piece). The pieces of a job arrive in order.
        give_up: Called in the scheduler's thread with the last error, after MAX_FAULTS failed passes (see there). The
            thread then ends.
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
        self._jobs: list[Job | None] = []  # the job in each slot of the batch
        self._spare_passes = 0  # passes in a row in which a smaller batch would have been enough
        self._under_way: list[tuple[list[Job | None], Scored]] = []  # launched results that the host has not read
        self._next_slot = 0  # the slot at which the next search for a slot to fill begins
        self._work = threading.Condition()
        self._closes_at: float | None = None
        self._last_token = time.monotonic()
        self._ready = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    # -- called from other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread and returns when the model is compiled. An error of compiling is raised again here."""
        mx.eval(self._model.weights())  # a lazy array would be bound to a stream of the calling thread
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def submit(self, jobs: Sequence[Job]) -> None:
        """Adds all jobs to the queue.

        Raises:
            Busy: The scheduler is closed, or too many jobs would be in flight. No job is added.
        """
        with self._work:
            if self._closes_at is not None:
                raise Busy("the server is shutting down", for_good=True)
            if self.in_flight + len(jobs) > self.capacity:
                now = f"{self.in_flight} texts are in progress"
                raise Busy(f"{now}, and {len(jobs)} more exceed the limit of {self.capacity}")
            if not self.in_flight:
                self._last_token = time.monotonic()
            self._waiting.extend(jobs)
            self._work.notify()

    def update(self, weights: dict[str, mx.array]) -> None:
        """Replaces the weights of the network, given by name. No job may be in flight.

        The weights must have been evaluated, because MLX would bind their computation to the calling thread.
        """
        with self._work:
            assert not self.in_flight, "the weights cannot change while texts are generated"
            self._slots.update(weights)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancels jobs. They take part in no further pass. A pass that is running may still deliver a token of them."""
        with self._work:
            for job in jobs:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def close(self, seconds: float) -> None:
        """Stops accepting jobs, and ends those in flight with an error after `seconds`.

        A second call can only shorten that time.
        """
        with self._work:
            self._closes_at = min(time.monotonic() + seconds, self._closes_at or math.inf)
            self._work.notify()

    def join(self) -> None:
        """Waits until the thread has ended, after close(). A process should not end while its thread uses MLX."""
        self._thread.join()

    @property
    def capacity(self) -> int:
        """Largest number of jobs in flight."""
        return self.num_slots + self.max_waiting

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
    def batch_rows(self) -> int:
        """The present number of slots, free ones included."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return self.num_active + self.num_waiting

    @property
    def healthy(self) -> bool:
        """Whether the thread is alive and does not stall.

        It stalls if texts are in flight and more than STALLED_AFTER s have passed since the last delivery, or since
        submit() ended an idle time.
        """
        stalled = self.in_flight and time.monotonic() - self._last_token > STALLED_AFTER
        return self.alive and not stalled

    # -- the scheduler's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._slots = Slots(self._model, self.num_slots)
            self._jobs = [None] * self._slots.num_rows
        except Exception as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        faults = 0  # failed passes since the last pass that delivered a token
        while self._wait():
            try:
                if faults:  # inside `try`, so that an error of clear() counts as a fault too
                    self._slots.clear()
                    self._jobs = [None] * self._slots.num_rows
                if self._pass():
                    faults = 0
            except Exception as error:
                faults += 1
                self.num_faults += 1
                self._under_way = []
                self._fail(filter(None, self._jobs), f"the engine failed ({type(error).__name__}); try again")
                if faults == MAX_FAULTS:
                    self._closes_at = time.monotonic()
                    self._fail(self._waiting, "the engine failed several times in a row; the server is stopping")
                    self._give_up(error)
                    return
        self._fail([*filter(None, self._jobs), *self._waiting], "the server is shutting down")
        # MLX keeps compiled functions of a thread, with Python objects, until they are deleted in the thread. What is
        # left when the thread ends is deleted after join(), and aborts the process if Python has ended by then.
        self._slots = None
        gc.collect()

    def _wait(self) -> bool:
        """Blocks until a job is in flight or the scheduler is closed. Returns whether the thread should continue."""
        with self._work:
            while not self.in_flight and self._closes_at is None:
                self._work.wait()
            return self.in_flight > 0 and (self._closes_at is None or time.monotonic() < self._closes_at)

    def _pass(self) -> bool:
        """Runs one pass, as the docstring of this module describes it. Returns whether a token was delivered."""
        self._release_slots()
        self._fit_batch()
        self._fill_slot()
        num_due = len(self._under_way)  # excludes the step launched next, which the device computes during the delivery
        self._launch_step()
        return self._deliver_results(num_due)

    def _release_slots(self) -> None:
        for slot, job in enumerate(self._jobs):
            if job and job.over:
                self._jobs[slot] = None

    def _fit_batch(self) -> None:
        """Changes the shape of the batch. The number of rows grows at once; Slots itself makes more room for tokens.

        The batch shrinks after SHRINK_AFTER passes with spare slots or spare room, or at once if every slot is empty.
        """
        slots, kept = self._slots, [slot for slot, job in enumerate(self._jobs) if job]
        wanted = min(len(kept) + len(self._waiting), self.num_slots)
        num_rows = next(size for size in slots.sizes if size >= wanted)
        length = max((self._jobs[slot].position for slot in kept), default=0) + 1
        room = slots.room_for(min(length, slots.block_size))
        self._spare_passes = self._spare_passes + 1 if num_rows < slots.num_rows or room < slots.room else 0
        if num_rows > slots.num_rows or self._spare_passes == SHRINK_AFTER or (self._spare_passes and not kept):
            slots.arrange(kept, num_rows, room)
            self._jobs = [self._jobs[slot] for slot in kept] + [None] * (num_rows - len(kept))
            self._spare_passes = 0

    def _fill_slot(self) -> None:
        """Reads tokens into at most one slot.

        A free slot gets the prompt of a waiting job. A slot whose context is full gets the newer half of its own tokens
        again, so that its text can continue. The search begins after the slot that was filled last, so that new prompts
        and full contexts take turns.
        """
        block_size = self._slots.block_size
        slots = [(self._next_slot + i) % len(self._jobs) for i in range(len(self._jobs))]
        with self._work:
            slot = next((i for i in slots if self._needs_prefill(self._jobs[i])), None)
            if slot is None:
                return
            is_new = self._jobs[slot] is None
            if is_new:
                self._jobs[slot] = self._waiting.popleft()
        self._next_slot = slot + 1
        if not is_new:
            self._deliver_results(len(self._under_way))  # the window must have every token drawn so far
        self._prefill(slot, self._jobs[slot], block_size if is_new else max(block_size // 2, 1))

    def _needs_prefill(self, job: Job | None) -> bool:
        return bool(self._waiting) if job is None else job.position == self._slots.block_size

    def _prefill(self, slot: int, job: Job, length: int) -> None:
        """Delivers the job's echo if that is due, reads its last `length` tokens into the slot, and draws the next."""
        if job.over:
            return
        tokens = job.window(length)
        if job.echo and not job.launched:
            self._deliver([(job, Piece(job.echo, self._prompt_scores(job, tokens) if job.scored else ()))])
        if job.max_tokens == 0:
            self._deliver([(job, Piece(job.writer.end(), finish_reason=job.writer.finish_reason))])
            return
        draw, penalties = _arguments([job])
        scored = self._slots.read(slot, tokens, draw, penalties)
        job.position = len(tokens)
        job.launched += 1
        self._under_way.append(([job], scored))

    def _prompt_scores(self, job: Job, window: list[int]) -> tuple[Token, ...]:
        """The prompt's tokens with their log-probabilities.

        `window` holds the last tokens of the prompt. The model reads only these.
        """
        num_unscored = len(job.prompt) - len(window) + 1  # the tokens before the window, and the window's first token
        scores = [Token(id, None, []) for id in job.prompt[:num_unscored]]
        counts = [job.alternatives] * (len(window) - 1)
        scores += _to_tokens(self._slots.score(window), counts) if counts else []
        return tuple(replace(token, offset=begin) for token, begin in zip(scores, job.prompt_offsets(), strict=True))

    def _launch_step(self) -> None:
        """Launches one step for all texts whose context is not full and that have tokens left to draw."""
        block_size = self._slots.block_size
        rows = [
            job if job and not job.over and 0 < job.position < block_size and job.launched < job.max_tokens else None
            for job in self._jobs
        ]
        if not any(rows):
            return
        draw, penalties = _arguments(rows)
        scored = self._slots.step([job.position if job else 0 for job in rows], draw, penalties)
        for job in filter(None, rows):
            job.position += 1
            job.launched += 1
        self._under_way.append((rows, scored))

    def _deliver_results(self, count: int) -> bool:
        """Waits for the oldest `count` launched results and delivers them. Returns whether a token was delivered."""
        due, self._under_way = self._under_way[:count], self._under_way[count:]
        pieces = []
        for jobs, scored in due:
            counts = [job.alternatives if job else 0 for job in jobs]
            for job, token in zip(jobs, _to_tokens(scored, counts), strict=True):
                if job and not job.over:
                    pieces.append((job, job.take(token)))
        if pieces:
            self._last_token = time.monotonic()
            self._deliver(pieces)
        return bool(pieces)

    def _fail(self, jobs: Iterable[Job], message: str) -> None:
        """Ends jobs with an error, and removes them from the queue and the slots."""
        with self._work:
            failed = [(job, Piece(error=message)) for job in jobs if not job.over]
            for job, _ in failed:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.over)
            self._jobs = [None if job and job.over else job for job in self._jobs]
        self._deliver(failed)


def _arguments(rows: Sequence[Job | None]) -> tuple[Draw, PenaltyBatch | None]:
    """The arguments with which Slots draws the next token of each row. None is a row without a job."""
    draw = to_draw([(job.sampling, job.seed, job.launched) if job else IDLE for job in rows])
    # The host has read every token of a job except, at most, the last one.
    return draw, to_batch([(job.penalties, job.launched > len(job.drawn)) if job else (None, False) for job in rows])


def _to_tokens(scored: Scored, counts: Sequence[int]) -> list[Token]:
    """Converts arrays to tokens, one for each row. Waits until the device has computed them.

    Args:
        scored: The arrays.
        counts: The number of most likely ids to keep for each row.
    """
    ids, logprobs, sampled, *top = scored
    tops = zip(*(a.tolist() for a in top), strict=True) if any(counts) else [((), ())] * len(counts)
    rows = zip(ids.tolist(), logprobs.tolist(), sampled.tolist(), tops, counts, strict=True)
    return [
        Token(id, logprob, [*zip(likely[:count], their_logprobs[:count], strict=True)], sampled=at_temperature)
        for id, logprob, at_temperature, (likely, their_logprobs), count in rows
    ]
