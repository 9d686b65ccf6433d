"""Generates several texts at once and returns them when all have ended."""

import queue
from collections.abc import Sequence

from mlx_gpt.errors import EngineFailed
from mlx_gpt.generation.job import Job, Piece, merge
from mlx_gpt.generation.scheduler import Scheduler


def generate_all(model, jobs: Sequence[Job], num_slots: int = 16) -> list[Piece]:
    """Generates the texts of all jobs, up to `num_slots` at a time. A text does not depend on the other jobs.

    Args:
        model: The network.
        jobs: The texts to generate.
        num_slots: Largest number of texts at a time.

    Returns:
        The whole text of each job, in the order of the jobs.

    Raises:
        EngineFailed: A text ended with an error.
        Exception: The error of a device that failed repeatedly.
    """
    if not jobs:
        return []
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    scheduler = Scheduler(model, min(num_slots, len(jobs)), len(jobs), deliver=arrived.put, give_up=arrived.put)
    pieces: dict[Job, list[Piece]] = {job: [] for job in jobs}
    left = len(pieces)
    scheduler.start()
    try:
        scheduler.submit(list(pieces))
        while left:
            found = arrived.get()
            if isinstance(found, Exception):
                raise found
            for job, piece in found:
                pieces[job].append(piece)
                left -= piece.finish_reason is not None
            if failed := next((piece.error for _, piece in found if piece.error), None):
                raise EngineFailed(failed)
    finally:
        scheduler.cancel(jobs)
        scheduler.close(0)
        scheduler.join()
    return [merge(pieces[job]) for job in jobs]
