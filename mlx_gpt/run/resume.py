"""The initial state of a resumed run: its checkpoint, settings, text and folder."""

import dataclasses
import itertools
import math
from pathlib import Path

from mlx_gpt.checkpoint.store import Checkpoint
from mlx_gpt.config.presets import load_toml, resolve
from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.config.table import merge, nest
from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.encoding import make_tokenizer
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import BadFile, ResumeRefused, UserError
from mlx_gpt.model.gpt import roles_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.run.build import Start, open_text
from mlx_gpt.run.folder import is_run, newest_run
from mlx_gpt.run.loading import read_checkpoint, require_vocab, tokenizer_of
from mlx_gpt.run.request import NEWEST, Note, Request, network_of
from mlx_gpt.train.trainer import BEST, LATEST


def resumed(request: Request, note: Note) -> Start:
    """The initial state of the run that `request.resume` names.

    Raises:
        ResumeRefused: The run does not match the other arguments.
        BadFile: Its checkpoint is corrupt.
        UserError: There is no such run, or an argument is wrong.
    """
    checkpoint, folder = _checkpoint_to_resume(request, note)
    checkpoint = checkpoint.as_trained()
    header = checkpoint.header
    config = _resumed_config(checkpoint, request)
    corpus = _open_corpus(config, request, note)
    tokenizer = _checked_tokenizer(checkpoint, config, corpus, note)
    optimizer = Optimizer(config.optimizer, roles_of(config.model, header.vocab_size))
    has_moments = optimizer.required_tensors() <= checkpoint.optimizer.keys()
    if not has_moments:
        note(f"the checkpoint has no optimizer state of {config.optimizer.name}; it is initialized")
    header = dataclasses.replace(
        header,
        config=config,
        tokenizer=tokenizer.to_dict(),
        corpus=corpus.fingerprint,
        planned=header.planned and not {"train.iters", "train.minutes"} & request.settings.keys(),
        num_updates=header.num_updates if has_moments else 0,
        best_loss=math.inf if math.isnan(header.best_loss) else header.best_loss,
    )
    return Start(
        header=header,
        weights=checkpoint.weights,
        optimizer=checkpoint.optimizer if has_moments else None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=folder,
    )


def _checkpoint_to_resume(request: Request, note: Note) -> tuple[Checkpoint, Path | None]:
    """The checkpoint, and the folder of its run; None for a new folder."""
    if request.resume == "":
        raise UserError("--resume is empty; give a file or a run folder, or no value for the newest run")
    if request.resume == NEWEST and request.out and not request.out.is_dir():
        raise UserError(f"--out {request.out}: no run there to resume; leave out --resume to start one")
    path = Path(request.resume) if request.resume != NEWEST else request.out or newest_run()
    if path.is_dir():
        checkpoint, folder = _newest_valid(path, request, note), path
    else:
        checkpoint = read_checkpoint(path, request.preset, network_of(request.settings))
        folder = path.parent if path.name == LATEST and is_run(path.parent) else None
    if folder is None or request.out not in (None, folder):
        note(f"resuming from {path} in a new run folder")
        folder = None
    return checkpoint, folder


def _newest_valid(folder: Path, request: Request, note: Note) -> Checkpoint:
    """A run's intact checkpoint with the most steps. A corrupt one is renamed if the other is intact."""
    found, broken = [], []
    for path in (folder / LATEST, folder / BEST):
        if path.exists():
            try:
                found.append(read_checkpoint(path, request.preset, network_of(request.settings)))
            except BadFile as error:
                broken.append((path, error))
    if not found:
        raise (
            broken[0][1]
            if broken
            else UserError(f"{folder}: no checkpoint to resume from; start a new run without --resume")
        )
    for path, error in broken:
        aside = next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.corrupt-{n}")).exists())
        path.rename(aside)
        note(f"{error}; renamed to {aside.name}, resuming from the other checkpoint")
    return max(found, key=lambda checkpoint: checkpoint.header.step)


def _resumed_config(checkpoint: Checkpoint, request: Request) -> Config:
    """The run's settings, with changes from the request. The tokenizer and the validation split cannot change."""
    header = checkpoint.header
    if header.tokenizer is None:  # an RGPT file: it has a shape, perhaps AdamW's moments, and no settings
        overrides = {
            k: v for k, v in request.settings.items() if k.removeprefix("model.") not in header.config.model.shape()
        }
        shape = {f"model.{k}": v for k, v in header.config.model.shape().items()}
        return resolve(None, request.recipe, overrides | shape, base={"optimizer.name": "adamw"})
    tables = header.config.to_dict()
    if request.recipe:
        tables = merge(tables, load_toml("presets/recipes", request.recipe))
    config = Config.from_dict(merge(tables, nest(request.settings)))
    old, new = header.config, config
    for key in ("tokenizer", "vocab_size", "vocab"):
        if getattr(old.data, key) != getattr(new.data, key):
            raise ResumeRefused(
                f"data.{key} is {getattr(new.data, key)}, the run has {getattr(old.data, key) or 'its own'}; "
                "the tokenizer of a run cannot change, start a new run for another one"
            )
    if old.data.val_fraction != new.data.val_fraction:
        raise ResumeRefused(
            f"data.val_fraction is {new.data.val_fraction}, the checkpoint has {old.data.val_fraction}; another split "
            "would validate on text that was trained on, leave out data.val_fraction"
        )
    return config


def _open_corpus(config: Config, request: Request, note: Note) -> Corpus:
    """Opens the run's corpus. If it cannot be found, the error explains how to give its new location."""
    try:
        return open_text(config, note)
    except UserError as error:
        if "data.corpus" in request.settings:
            raise
        raise type(error)(f"{error}; this run was trained on it, give its new location with --corpus") from None


def _checked_tokenizer(checkpoint: Checkpoint, config: Config, corpus: Corpus, note: Note) -> Tokenizer:
    """The run's tokenizer, after a check that the corpus is the text of the run.

    An RGPT file has no tokenizer. It gets that of the corpus, which must have the same number of ids.
    """
    header = checkpoint.header
    tokenizer = tokenizer_of(header)
    if tokenizer is None:
        tokenizer = make_tokenizer(corpus, config.data, note)
        require_vocab(config.data.vocab or f"corpus {corpus.name}", tokenizer, header.vocab_size)
        return tokenizer
    if corpus.fingerprint != header.corpus:
        raise ResumeRefused(
            f"corpus {corpus.name} is not the text of this run: SHA-256 {corpus.fingerprint[:12]}..., the "
            f"checkpoint has {str(header.corpus)[:12]}...; give the same --corpus, or start a new run with --fine-tune"
        )
    for change in _changes(header.config, config):
        note(change)
    return tokenizer


def _changes(old: Config, new: Config) -> list[str]:
    """One line for each setting that a resumed run changes."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{table}.{key} is now {value}, it was {before[table][key]}"
        for table, settings in after.items()
        for key, value in settings.items()
        if value not in (before[table][key], UNTIL_TIME_IS_UP)
    ]
