"""Detectors that read what the model writes: it repeats itself, writes one token, or writes the same for a prompt."""

import zlib
from collections import Counter

from mlx_gpt.watch.detectors.protocol import Finding, Line, Settings, number

# Length of a text divided by its length when it is compressed with zlib. Whisper (arXiv:2212.04356) takes 2.4 as a sign
# of repetition in speech. Passages of 300 to 1,200 characters had at most 2.5: English, Python, and samples of models.
RATIO = 5.0
ONE = 0.8  # share of one character from which on the others hardly matter; a space has about a fifth of a text
LONG = 50  # characters of a text that is judged; a shorter one has too few to repeat
SAMPLES = 2  # in a row, because a single draw can run into a loop
DISTINCT = 0.25  # share of the texts of a prompt that differ; below it, rewards have nothing left to choose from


class Repetition:
    """The samples repeat themselves."""

    kind, reports, clear = "repetition", ("sample",), 2

    def __init__(self, settings: Settings):
        self._steps: list[int] = []  # of the last samples in a row that repeat themselves

    def __call__(self, kind: str, line: Line) -> Finding | None:
        text = line.get("text")
        ratio = _ratio(text) if isinstance(text, str) and len(text) >= LONG else 0.0
        self._steps = [*self._steps[:SAMPLES], int(line["step"])] if ratio > RATIO and _share(text)[1] < ONE else []
        if len(self._steps) < SAMPLES:
            return None
        return Finding(
            since=self._steps[0],
            evidence=f"a sample of {len(text)} characters can be compressed to {len(text) / ratio:.0f} bytes",
            advice="the text may have many equal passages: mlxgpt corpus stats counts them; generate with "
            "--repetition-penalty 1.1 until the model has learned more",
        )


class OneToken:
    """The samples consist of one character."""

    kind, reports, clear = "collapse", ("sample",), 2

    def __init__(self, settings: Settings):
        self._settings = settings
        self._steps: list[int] = []

    def __call__(self, kind: str, line: Line) -> Finding | None:
        text = line.get("text")
        character, share = _share(text) if isinstance(text, str) and len(text) >= LONG else ("", 0.0)
        self._steps = [*self._steps[:SAMPLES], int(line["step"])] if share >= ONE else []
        if len(self._steps) < SAMPLES:
            return None
        lower = self._settings.get("optimizer.learning_rate", 3e-3) / 3
        return Finding(
            since=self._steps[0],
            evidence=f"{share:.0%} of the characters of a sample are {character!a}",
            advice=f"stop it, and lower the learning rate: {self._settings.resume(f'--lr {lower:.2g}')}",
        )


class Diversity:
    """The texts that are drawn for a prompt are nearly all equal."""

    kind, reports, clear = "collapse", ("step",), 20

    def __init__(self, settings: Settings):
        self._size, self._since = settings.get("rl.group_size", 8), None

    def __call__(self, kind: str, line: Line) -> Finding | None:
        share = number(line, "distinct")
        if share is None or self._size == 1 or (share >= DISTINCT and share > 1 / self._size):
            self._since = None
            return None
        self._since = int(line["step"]) if self._since is None else self._since
        return Finding(
            since=self._since,
            evidence=f"only {share:.0%} of the texts of a prompt differ",
            advice="raise train.entropy_weight or rl.kl_weight, or lower --lr",
        )


def _ratio(text: str) -> float:
    data = text.encode("utf-8", "surrogatepass")
    return len(data) / len(zlib.compress(data))


def _share(text: str) -> tuple[str, float]:
    """The most frequent character of a text, and its share."""
    ((character, count),) = Counter(text).most_common(1)
    return character, count / len(text)
