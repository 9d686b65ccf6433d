"""`train` and `rl`: train a model on a text, or with rewards of what it writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_gpt.run.request import NEWEST, Note, Request, ignore, settings_of, specs_of
from mlx_gpt.run.rl import rl_request
from mlx_gpt.run.session import Session


def train(
    preset: str | None = None,
    corpus: str | Path | Sequence[str | Path] | None = None,
    *,
    recipe: str | None = None,
    vocab: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | bool = False,
    fine_tune: str | Path | None = None,
    note: Note = ignore,
) -> Session:
    """Prepares the training of a model in a run folder, as `mlxgpt train` does. Iterating over the result trains.

    No update is made before the first report is requested. Every report is a frozen dataclass of
    `mlx_gpt.train.reports`. To end the run early, call `stop()` of the result and continue to iterate. The last two
    reports are then those of the last checkpoint (if a step was made) and of the end of the run.

    Args:
        preset: Name or path of a preset. [default: model-l]
        corpus: Corpus names, files, folders or patterns. [default: pydocs, or the corpus of the checkpoint]
            Required to resume a checkpoint that names no corpus, such as an RGPT file.
        recipe: Name or path of a recipe, a file of training settings that override the preset.
        vocab: A vocab.json or tokenizer.json whose vocabulary encodes the corpus.
        settings: Any settings by dotted name, such as {"train.iters": 100}. They override preset and recipe.
        out: The run folder. [default: the resumed run's, or runs/PRESET-CORPUS, with a number if that exists]
        resume: A run folder or a checkpoint to resume; True for the newest run.
        fine_tune: A checkpoint whose weights a new run starts from.
        note: Called with each message for the user, one line of text.

    Returns:
        A Session: an iterator over the reports. Its `folder` is the run folder, which it locks until the last report.
        It yields no report if the run has reached `train.iters` and evaluated its last weights.

    Raises:
        UserError: A setting, a name or a path is wrong. The classes below are its subclasses.
        BadFile: A file is corrupt.
        ResumeRefused: The run to resume does not match the arguments, or another process trains in the folder.
        Mismatch: The checkpoint to fine-tune does not match the arguments.
        OutOfRoom: Not enough memory or disk space.

    Example:
        for report in mlx_gpt.train("model-xs", "shakespeare", settings={"train.minutes": 5}):
            print(report)
    """
    given = list((settings or {}).items())
    given += [("data.corpus", specs_of(corpus))] if corpus else []
    given += [("data.vocab", str(vocab))] if vocab else []
    request = Request(
        preset=preset,
        recipe=recipe,
        settings=settings_of(given),
        out=Path(out) if out else None,
        resume=_resumed(resume),
        fine_tune=None if fine_tune is None else Path(fine_tune),
    )
    return Session(request, note)


def rl(
    checkpoint: str | Path | None = None,
    *,
    objective: str = "grpo",
    reward: str | Path = "compiles",
    prompts: str | Path | None = None,
    corpus: str | Path | Sequence[str | Path] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | Path | bool = False,
    note: Note = ignore,
) -> Session:
    """Prepares the training of a model with rewards of the texts that it writes, as `mlxgpt rl` does.

    Iterating over the result trains, as for `train`.

    Args:
        checkpoint: The checkpoint or the run folder to begin with. None only if `resume` is given.
        objective: "grpo", "dr-grpo", "gspo", "maxrl" or "rft".
        reward: "compiles", or "tests", which executes what the model writes in a sandbox, or a Python file with a
            function reward(prompt, text).
        prompts: A JSON Lines file with prompts. [default: 256 beginnings of programs]
        corpus: The text on which the validation loss is measured. [default: the corpus of the checkpoint]
        settings: Any settings by dotted name, such as {"rl.kl_weight": 0.1}.
        out: The run folder. [default: runs/PRESET-CORPUS-OBJECTIVE, with a number if that exists]
        resume: A run folder to resume; True for the newest run. The other arguments are then those of the run.
        note: Called with each message for the user, one line of text.

    Returns:
        A Session: an iterator over the reports.

    Raises:
        UserError: As for `train`; or no checkpoint is given, or there is no such reward.
    """
    given = list((settings or {}).items())
    if _resumed(resume) is None:
        given += [("train.objective", objective), ("rl.reward", str(reward))]
        given += [("rl.prompts", str(prompts))] if prompts else []
    given += [("data.corpus", specs_of(corpus))] if corpus else []
    request = rl_request(
        settings_of(given),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        out=Path(out) if out else None,
        resume=_resumed(resume),
    )
    return Session(request, note)


def _resumed(resume: str | Path | bool) -> str | None:
    """The value of `Request.resume` for the argument `resume`."""
    if isinstance(resume, bool):
        return NEWEST if resume else None
    return str(resume)
