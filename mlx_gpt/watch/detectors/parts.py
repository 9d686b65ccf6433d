"""Detectors of parts of a network that do nothing: experts without load, equal streams, and trits that never change."""

from mlx_gpt.watch.detectors.protocol import Finding, Line, Settings, number

UPDATES = 100  # in a row with an idle expert: by chance, an expert that is used is idle in few batches in a row
SPREAD = 0.02  # the initial weights with which units write to the streams differ by 0.24
EVALUATIONS = 3  # in a row without a change of a trit
MIN_RATE = 0.1  # of the peak learning rate; below it, no trit need change


class Experts:
    """An expert gets no tokens."""

    kind, reports, clear = "dead", ("step",), 100

    def __init__(self, settings: Settings):
        self._settings, self._since = settings, None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        idle, step = number(line, "experts.idle"), int(line["step"])
        self._since = None if not idle else step if self._since is None else self._since
        if self._since is None or step - self._since < UPDATES:
            return None
        weight = 3 * max(self._settings.get("train.balance_weight", 0.01), 0.01)
        return Finding(
            since=self._since,
            evidence=f"{idle:.1%} of the experts get no token; no batch in {UPDATES} had a token for each expert",
            advice=f"raise the weight of balance: {self._settings.resume(f'--set train.balance_weight={weight:g}')}",
        )


class Streams:
    """The residual streams are written alike, so that they do not differ."""

    kind, reports, clear = "dead", ("eval",), 3

    def __init__(self, settings: Settings):
        self._since: int | None = None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        spread = number(line, "streams.spread")
        if spread is None or spread >= SPREAD:
            self._since = None
            return None
        self._since = int(line["step"]) if self._since is None else self._since
        return Finding(
            since=self._since,
            evidence=f"the weights with which a unit writes to the residual streams differ by {spread:.3f} on average",
            advice="train with one stream, which costs less: --set model.residual=add",
        )


class Trits:
    """The trits of a ternary network, or of one of its layers, never change, although the learning rate is high."""

    kind, reports, clear = "dead", ("step", "eval"), 3

    def __init__(self, settings: Settings):
        self._settings = settings
        self._rate: float | None = None
        self._counts: dict[str, list[int]] = {}  # part of the network -> steps of evaluations in a row without a change
        self._found: Finding | None = None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        if kind == "step":
            self._rate = number(line, "lr")
            return self._found
        peak = self._settings.get("optimizer.learning_rate", 3e-3)
        is_training = self._rate is not None and self._rate > MIN_RATE * peak
        shares = {name.removesuffix("changed"): number(line, name) for name in line if name.endswith("changed")}
        still = [part for part, share in shares.items() if share == 0 and is_training]
        self._counts = {part: [*self._counts.get(part, []), int(line["step"])][-EVALUATIONS:] for part in still}
        parts = [part for part, steps in self._counts.items() if len(steps) == EVALUATIONS]
        self._found = self._finding(parts, peak) if parts else None
        return self._found

    def _finding(self, parts: list[str], peak: float) -> Finding:
        names = "the network" if "" in parts else ", ".join(part.rstrip(".") for part in sorted(parts))
        return Finding(
            since=self._counts[parts[0]][0],
            evidence=f"no trit of {names} changed in {EVALUATIONS} evaluations",
            advice=f"raise the learning rate: {self._settings.resume(f'--lr {3 * peak:.2g}')}",
        )
