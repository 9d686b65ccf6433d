"""Generates several texts at once and returns them when all have ended."""

import atexit
import queue
from collections.abc import Sequence

from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.job import Job, Piece, merge
from mlx_gpt.generation.scheduler import Scheduler


class Together:
    """A scheduler for texts that are generated one list after the other. A text does not depend on the other texts.

    A context manager: the scheduler's thread ends with the context, or before Python ends.

    Args:
        model: The network. It is not to be used by anything else.
        num_slots: Largest number of texts at a time.
        capacity: Largest number of texts in a list.
    """

    def __init__(self, model, num_slots: int, capacity: int):
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()
        put = self._arrived.put
        self._scheduler = Scheduler(model, min(num_slots, capacity), capacity, deliver=put, give_up=put)
        self._scheduler.start()
        atexit.register(self.close)  # Python cannot end in order while the thread uses MLX

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the scheduler's thread. A second call does nothing."""
        atexit.unregister(self.close)
        self._scheduler.close(0)
        self._scheduler.join()

    def update(self, weights: dict[str, mx.array]) -> None:
        """Replaces the weights of the network, given by name. They must have been evaluated."""
        self._scheduler.update(weights)

    def write(self, jobs: Sequence[Job]) -> list[Piece]:
        """Generates the texts of all jobs.

        Args:
            jobs: The texts to generate, at most `capacity`.

        Returns:
            The whole text of each job, in the order of the jobs.

        Raises:
            EngineFailed: A text ended with an error.
            Exception: The error of a device that failed repeatedly.
        """
        pieces: dict[Job, list[Piece]] = {job: [] for job in jobs}
        left = len(pieces)
        self._scheduler.submit(list(pieces))
        try:
            while left:
                found = self._arrived.get()
                if isinstance(found, Exception):
                    raise found
                for job, piece in found:
                    pieces[job].append(piece)
                    left -= piece.finish_reason is not None
                if failed := next((piece.error for _, piece in found if piece.error), None):
                    raise EngineFailed(failed)
        finally:
            self._scheduler.cancel(jobs)
        return [merge(pieces[job]) for job in jobs]


def generate_all(model, jobs: Sequence[Job], num_slots: int = 16) -> list[Piece]:
    """Generates the texts of all jobs with a network, up to `num_slots` at a time. See Together.write()."""
    if not jobs:
        return []
    with Together(model, num_slots, len(jobs)) as together:
        return together.write(jobs)
