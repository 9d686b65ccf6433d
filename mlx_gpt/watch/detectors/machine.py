"""Detectors that read what a run takes from the machine: time, memory and disk space."""

import statistics
from collections import deque

from mlx_gpt.watch.detectors.protocol import Finding, Line, Settings, number

WINDOW = 20  # updates whose median speed is judged, so that an evaluation or a save between them does not count
USUAL = 10  # windows of usual speed that it is compared with
FEWEST = 2  # of these
SLOWER = 0.5  # share of the usual speed; two programs that share the cores of a machine have about this one
SLOW_SECONDS = 60.0  # of slow updates in a row, because other programs may need the processor for a while
NEAR = 0.9  # share of the memory limit; an evaluation or a sample takes some more than an update
CHECKPOINTS = 3  # that the disk should hold: a new one, its temporary file, and another best one


class Throughput:
    """The updates take far longer than before."""

    kind, reports, clear = "throughput", ("start", "step"), 100

    def __init__(self, settings: Settings):
        self._usual: deque[float] = deque(maxlen=USUAL)  # tokens per second of windows that are not slow
        self._restart()

    def _restart(self) -> None:
        self._window: list[tuple[float, float]] = []  # tokens per second, and seconds, of updates
        self._tokens = self._found = None
        self._since, self._slow = 0, 0.0

    def __call__(self, kind: str, line: Line) -> Finding | None:
        tokens, seconds = number(line, "tokens"), number(line, "seconds")
        if kind == "start":  # another process, maybe on another machine
            self._usual.clear()
            self._restart()
        elif tokens is not None and seconds is not None and seconds > 0:
            if self._tokens is not None:  # the first update of a process includes compilation
                self._window.append(((tokens - self._tokens) / seconds, seconds))
            self._tokens = tokens
            if len(self._window) == WINDOW:
                self._found = self._judge(int(line["step"]) - WINDOW + 1)
                self._window.clear()
        return self._found

    def _judge(self, first: int) -> Finding | None:
        """Judges the window that begins with the step `first`."""
        rate = statistics.median(rate for rate, _ in self._window)
        usual = statistics.median(self._usual) if len(self._usual) >= FEWEST else 0.0
        if rate >= SLOWER * usual:
            self._usual.append(rate)
            self._slow = 0.0
            return None
        self._since = self._since if self._slow else first
        self._slow += sum(seconds for _, seconds in self._window)
        if self._slow < SLOW_SECONDS:
            return None
        return Finding(
            since=self._since,
            evidence=f"{rate:,.0f} tokens/s, and {usual:,.0f} before",
            advice="look for other programs that use the processor, a hot machine, or memory that is swapped out; "
            "mlxgpt doctor lists what makes this machine slow",
        )


class Memory:
    """The memory of MLX arrays is close to its limit."""

    kind, reports, clear = "memory", ("start", "eval", "step"), 100

    def __init__(self, settings: Settings):
        self._settings = settings
        self._limit: float | None = None
        self._peak: float | None = None

    @property
    def share(self) -> float | None:
        """The peak memory as a share of its limit; None if they are not known."""
        return self._peak / self._limit if self._peak and self._limit else None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        self._limit = number(line, "memory_limit") or self._limit
        if kind == "step":
            self._peak = number(line, "peak_memory")
        if (share := self.share) is None or share < NEAR:
            return None
        return Finding(
            since=int(line["step"]),
            evidence=f"{self._peak / 1e9:.2f} GB of MLX arrays, {share:.0%} of the limit of {self._limit / 1e9:.2f} GB",
            advice=lighter(self._settings),
        )


class Disk:
    """A checkpoint could not be written, or the disk will not hold the next ones."""

    kind, reports, clear = "disk", ("save",), 1

    def __init__(self, settings: Settings):
        self._since: int | None = None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        evidence = self._evidence(line)
        if evidence is None:
            self._since = None
            return None
        self._since = int(line["step"]) if self._since is None else self._since
        advice = "free some space on the disk of the run folder; mlxgpt runs clean lists what can be deleted"
        return Finding(since=self._since, evidence=evidence, advice=advice)

    def _evidence(self, line: Line) -> str | None:
        if isinstance(error := line.get("error"), str):
            return f"a checkpoint could not be written: {error}"
        size, free = number(line, "num_bytes"), number(line, "free_bytes")
        if size is None or free is None or free >= CHECKPOINTS * size:
            return None
        return f"{free / 1e6:.1f} MB free, for checkpoints of {size / 1e6:.1f} MB each"


class OutOfMemory:
    """The run ended because memory ran out."""

    kind, reports, clear = "out-of-memory", ("failure",), 1

    def __init__(self, settings: Settings):
        self._settings = settings

    def __call__(self, kind: str, line: Line) -> Finding | None:
        message = line.get("message")
        if not isinstance(message, str) or "memory" not in message:
            return None
        return Finding(since=int(line["step"]), evidence=message, advice=lighter(self._settings))


def lighter(settings: Settings) -> str:
    """Returns what to do so that an update needs less memory."""
    batch, parts = settings.get("train.batch_size", 16), settings.get("train.grad_accum_steps", 1)
    if batch == 1:
        return settings.resume("--set speed.remat=true")
    return settings.resume(f"--batch {-(-batch // 2)} --accum {2 * parts}")
