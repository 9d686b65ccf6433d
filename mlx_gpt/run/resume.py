"""The initial state of a resumed run: its checkpoint, settings, text and folder."""

import dataclasses
import math
from pathlib import Path

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.budget import iters_of, tokens_per_update
from mlx_gpt.config.presets import load_toml, over
from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.config.table import merge, nest
from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.encoding import make_tokenizer
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import BadFile, ResumeRefused, Unreadable, UserError
from mlx_gpt.formats.huggingface.folder import is_folder
from mlx_gpt.model.gpt import roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.run.build import Start, open_text, require_known_length
from mlx_gpt.run.folder import is_run, newest_run
from mlx_gpt.run.imported import has_settings, settings_for
from mlx_gpt.run.loading import TOKENIZER_KEYS, read_checkpoint, require_trainable, require_vocab, tokenizer_of
from mlx_gpt.run.request import NEWEST, Note, Request, network_of
from mlx_gpt.train.objectives import ROLLOUT_OBJECTIVES
from mlx_gpt.train.saving import BEST, LATEST


def resumed(request: Request, note: Note) -> Start:
    """Returns the initial state of the run that `request.resume` names.

    Args:
        request: The request; its `resume` is not None.
        note: Called with one line for each thing the user should know.

    Raises:
        Mismatch: The checkpoint has another network or number of ids than the request.
        ResumeRefused: The checkpoint has another tokenizer, text or `data.val_fraction` than the request, or the run
            does not learn from rewards and the request is for one that does.
        BadFile: The checkpoint is corrupt.
        UserError: There is no such run, or a setting or a path is wrong.
    """
    source, folder = located(request)
    checkpoint, corrupt = (
        _newest_valid(source, request, note) if _is_run_folder(source) else (_read(source, request), ())
    )
    checkpoint = checkpoint.as_trained()  # best.safetensors may hold the average of the weights in their place
    header = checkpoint.header
    if request.with_rewards and header.config.train.objective not in ROLLOUT_OBJECTIVES:
        raise ResumeRefused(
            f"{source}: was trained on text; continue it with mlxgpt train --resume {source}, or train its model with "
            f"rewards in a new run with mlxgpt rl {source}"
        )
    config = _with_length(_resumed_config(checkpoint, request, note), header, request)
    corpus = _open_corpus(header, config, request, note)
    tokenizer = _checked_tokenizer(source, checkpoint, config, corpus, note)
    if folder is None:
        note(f"resuming from {request.resume} in a new run folder")
    has_moments = _has_moments(checkpoint, config, note)
    header = dataclasses.replace(
        header,
        config=config,
        tokenizer=tokenizer.to_dict(),
        corpus=corpus.fingerprint,
        division=corpus.division,
        # With a new length or time budget, the trainer fits the length to the time budget again, if there is one.
        planned=header.planned
        and not {"train.iters", "train.minutes", "train.tokens"} & request.settings.keys()
        and config.train.iters == header.config.train.iters,
        # New moments are zero, so their bias correction, which depends on this count, starts again too.
        num_updates=header.num_updates if has_moments else 0,
        # An RGPT file may hold NaN. No loss is lower than NaN, so no evaluation would be a new best.
        best_loss=math.inf if math.isnan(header.best_loss) else header.best_loss,
    )
    start = Start(
        header=header,
        weights=checkpoint.weights,
        optimizer=checkpoint.optimizer if has_moments else None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=folder,
        corrupt=corrupt,
    )
    for change in _changes(checkpoint.header, start):
        note(change)
    return start


def located(request: Request) -> tuple[Path, Path | None]:
    """Returns the file or folder to resume from, and the run folder to continue in, which is None for a new folder.

    A run continues in its own folder if `request.resume` is that folder or its checkpoint.safetensors, and
    `request.out` is not another folder. A run that resumes from any other file continues in a new folder. No checkpoint
    is read.

    Raises:
        UserError: There is no such run, or no checkpoint in its folder.
    """
    if request.resume == NEWEST and request.out and not request.out.is_dir():
        raise UserError(f"--out {request.out}: no run there to resume; leave out --resume to start one")
    path = Path(request.resume) if request.resume != NEWEST else request.out or newest_run()
    if request.resume.isdigit() and not path.exists():
        raise UserError(
            f"{path}: no such file or run folder; for a number of steps, write: mlxgpt train {path} --resume"
        )
    if _is_run_folder(path):
        folder = path
        if not is_run(path):
            raise UserError(f"{path}: no checkpoint to resume from; start a new run without --resume")
    else:
        folder = path.parent if path.name == LATEST and is_run(path.parent) else None
    return path, folder if request.out in (None, folder) else None


def _is_run_folder(path: Path) -> bool:
    """Whether the path is a folder of mlxgpt, and not one that another program exported."""
    return path.is_dir() and not is_folder(path)


def _read(path: Path, request: Request) -> Checkpoint:
    checkpoint = read_checkpoint(path, request.preset, network_of(request.settings))
    require_trainable(path, checkpoint)
    return checkpoint


def _newest_valid(folder: Path, request: Request, note: Note) -> tuple[Checkpoint, tuple[Path, ...]]:
    """Reads both checkpoints of a run, and returns the one with more steps, and the path of a corrupt one.

    Raises:
        BadFile: Every checkpoint in the folder is corrupt.
        Unreadable: The system failed to read a checkpoint, which may have the most steps.
    """
    found, broken = [], []
    for path in (folder / LATEST, folder / BEST):
        if path.exists():
            try:
                found.append(_read(path, request))
            except Unreadable as error:
                raise Unreadable(f"{error}; try again; if the error remains, move this file elsewhere") from None
            except BadFile as error:
                broken.append((path, error))
    if not found:
        raise broken[0][1]
    for _, error in broken:
        note(f"{error}; resuming from the other checkpoint")
    return max(found, key=lambda checkpoint: checkpoint.header.step), tuple(path for path, _ in broken)


def _resumed_config(checkpoint: Checkpoint, request: Request, note: Note) -> Config:
    """Returns the checkpoint's settings, changed by the recipe and the settings of the request.

    A checkpoint without settings takes those of a recipe, see settings_for().

    Raises:
        ResumeRefused: The request changes the tokenizer or `data.val_fraction`.
        UserError: The checkpoint has no settings, and the request names no corpus.
    """
    header = checkpoint.header
    if not has_settings(header):
        config = settings_for(checkpoint, request, note)
        request.note_corpus(config.data.corpus, note)
        return config
    tables = header.config.to_dict()
    if request.recipe:
        # A recipe may set data.bpe_rule. The existing vocabulary keeps the rule that it was trained by.
        rule = {"data": {"bpe_rule": header.config.data.bpe_rule}}
        tables = merge(over(tables, load_toml("presets/recipes", request.recipe)), rule)
    config = Config.from_dict(over(tables, nest(request.settings)))
    old, new = header.config, config
    for key in TOKENIZER_KEYS:
        if getattr(old.data, key) != getattr(new.data, key):
            raise ResumeRefused(
                f"data.{key} is {getattr(new.data, key)}, but the run has {getattr(old.data, key) or 'its own'}; "
                "the tokenizer of a run cannot change, start a new run for another tokenizer"
            )
    if old.data.val_fraction != new.data.val_fraction:
        raise ResumeRefused(
            f"data.val_fraction is {new.data.val_fraction}, but the checkpoint has {old.data.val_fraction}; another "
            "split would validate on text that was trained on, leave out data.val_fraction"
        )
    if (old.train.objective in ROLLOUT_OBJECTIVES) != (new.train.objective in ROLLOUT_OBJECTIVES):
        raise ResumeRefused(
            f"train.objective is {new.train.objective}, but the run has {old.train.objective}; a run learns from text "
            "or from rewards to its end, start a new run with mlxgpt rl or with mlxgpt train --fine-tune"
        )
    return config


def _with_length(config: Config, header: Header, request: Request) -> Config:
    """Returns the settings of a resumed run with the number of updates that a length in tokens means.

    A length that the request gives replaces a time limit, unless it gives a time limit too.

    Raises:
        UserError: The run has already taken the time that the request gives.
    """
    settings, old = request.settings, header.config
    minutes = settings.get("train.minutes", 0)
    if 0 < minutes == old.train.minutes and header.planned and not settings.keys() & {"train.iters", "train.tokens"}:
        return config.replace({"train.iters": old.train.iters})  # the same time limit changes nothing
    if 0 < minutes <= header.elapsed / 60:
        raise UserError(
            f"train.minutes={minutes:g}: the run has already taken {header.elapsed / 60:.4g} minutes; give more"
        )
    require_known_length(config, settings)
    if settings.keys() & {"train.iters", "train.tokens"} and "train.minutes" not in settings:
        config = config.replace({"train.minutes": 0.0})
    is_same = (config.train.tokens, tokens_per_update(config)) == (old.train.tokens, tokens_per_update(old))
    if is_same or not config.train.tokens:
        return config
    more = iters_of(config, config.train.tokens - header.tokens)  # negative if the run is beyond this length
    return config.replace({"train.iters": max(1, header.step + more)})


def _has_moments(checkpoint: Checkpoint, config: Config, note: Note) -> bool:
    """Whether the checkpoint has the state of the optimizer. Notes if it has not."""
    optimizer = Optimizer(config.optimizer, roles_of(config.model, checkpoint.header.vocab_size))
    found = optimizer.required_tensors() <= checkpoint.optimizer.keys()
    if not found:
        note(f"the checkpoint has no optimizer state of {config.optimizer.name}; a new state is initialized")
    return found


def _open_corpus(header: Header, config: Config, request: Request, note: Note) -> Corpus:
    """Opens the run's corpus. If it cannot be found, the error explains how to give its new location."""
    try:
        return open_text(config, note)
    except UserError as error:
        if "data.corpus" in request.settings or not has_settings(header):
            raise
        raise type(error)(
            f"{error}; this run was trained on that corpus, give its new location with --corpus"
        ) from None


def _checked_tokenizer(source: Path, checkpoint: Checkpoint, config: Config, corpus: Corpus, note: Note) -> Tokenizer:
    """Returns the run's tokenizer, after checking that the corpus is the text that the run was trained on.

    A checkpoint that was read from an RGPT file contains no tokenizer and no fingerprint of its text. For such a
    checkpoint, the tokenizer is made from the settings and the corpus, and only its number of ids is checked. An
    exported folder contains a tokenizer, but no fingerprint, so nothing is checked.

    Raises:
        ResumeRefused: The corpus is another text, or the same text in other sources.
        Mismatch: The tokenizer has another number of ids than the checkpoint.
    """
    header = checkpoint.header
    tokenizer = tokenizer_of(source, header)
    if tokenizer is None:
        tokenizer = make_tokenizer(corpus, config.data, note)
        require_vocab("the checkpoint", config.data.vocab or f"corpus {corpus.name}", tokenizer, header.vocab_size)
        return tokenizer
    if not has_settings(header):
        return tokenizer
    if corpus.fingerprint != header.corpus:
        raise ResumeRefused(
            f"corpus {corpus.name} is not the text of this run: SHA-256 {corpus.fingerprint[:12]}..., the "
            f"checkpoint has {str(header.corpus)[:12]}...; give the same --corpus, or start a new run with --fine-tune"
        )
    if header.division not in (None, corpus.division):
        raise ResumeRefused(
            f"corpus {corpus.name} divides the text into other sources, of {_counts(corpus.division)} documents, the "
            f"checkpoint has {_counts(header.division)}; another split would validate on text that was trained on, "
            "give the same --corpus"
        )
    return tokenizer


def _counts(division: list[int]) -> str:
    return " and ".join(map(str, division))


def _changes(old: Header, start: Start) -> list[str]:
    """Returns one message for each setting that a resumed run changes; none if the run is complete.

    The value UNTIL_TIME_IS_UP of `train.iters` is skipped: it follows from `train.minutes`, see over().
    """
    if start.is_complete or not has_settings(old):
        return []
    before, after = old.config.to_dict(), start.header.config.to_dict()
    return [
        f"{table}.{key} is now {value}, it was {before[table][key]}"
        for table, settings in after.items()
        for key, value in settings.items()
        if value not in (before[table][key], UNTIL_TIME_IS_UP)
    ]
