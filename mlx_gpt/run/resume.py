"""The state of a run that is resumed: its checkpoint, its settings, its text, its folder."""

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
    """The state that `request.resume` names. Raises ResumeRefused if it does not fit the other arguments."""
    checkpoint, folder = _checkpoint_to_resume(request, note)
    checkpoint = checkpoint.as_trained()
    header = checkpoint.header
    config = _resumed_config(checkpoint, request)
    corpus = _same_text(config, request, note)
    tokenizer = _same_tokenizer(checkpoint, config, corpus, note)
    optimizer = Optimizer(config.optimizer, roles_of(config.model, header.vocab_size))
    has_moments = optimizer.required_tensors() <= checkpoint.optimizer.keys()
    if not has_moments:
        note(f"no optimizer moments of {config.optimizer.name} in this file: they start afresh")
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
        raise UserError("--resume is empty; name a file or a run folder, or give it alone for the newest run")
    if request.resume == NEWEST and request.out and not request.out.is_dir():
        raise UserError(f"--out {request.out}: no run there to go on with; leave --resume out to start one")
    path = Path(request.resume) if request.resume != NEWEST else request.out or newest_run()
    if path.is_dir():
        checkpoint, folder = _newest_valid(path, request, note), path
    else:
        checkpoint = read_checkpoint(path, request.preset, network_of(request.settings))
        folder = path.parent if path.name == LATEST and is_run(path.parent) else None
    if folder is None or request.out not in (None, folder):
        note(f"going on from {path} in a new run folder")
        folder = None
    return checkpoint, folder


def _newest_valid(folder: Path, request: Request, note: Note) -> Checkpoint:
    """The furthest intact checkpoint of a run. A corrupt one is renamed, never overwritten."""
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
            else UserError(f"{folder}: no checkpoint to resume from; start anew without --resume")
        )
    for path, error in broken:
        aside = next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.corrupt-{n}")).exists())
        path.rename(aside)
        note(f"{error}; kept as {aside.name}, going on from the other one")
    return max(found, key=lambda checkpoint: checkpoint.header.step)


def _resumed_config(checkpoint: Checkpoint, request: Request) -> Config:
    """The run's own settings with those given now. The shape, the tokens and the split cannot change."""
    header = checkpoint.header
    if header.tokenizer is None:  # an RGPT file holds a shape, perhaps AdamW's moments, and nothing else
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
                f"data.{key} {getattr(new.data, key)}, the run has {getattr(old.data, key) or 'its own'}; its tokens "
                "stay as they are, others need a new run"
            )
    if old.data.val_fraction != new.data.val_fraction:
        raise ResumeRefused(
            f"data.val_fraction {new.data.val_fraction}, the checkpoint has {old.data.val_fraction}; "
            "another split would validate on what was trained on"
        )
    return config


def _same_text(config: Config, request: Request, note: Note) -> Corpus:
    """The run's corpus. If it has moved, the error says how to name its new place."""
    try:
        return open_text(config, note)
    except UserError as error:
        if "data.corpus" in request.settings:
            raise
        raise type(error)(f"{error}; it is what this run was trained on, and --corpus says where it is now") from None


def _same_tokenizer(checkpoint: Checkpoint, config: Config, corpus: Corpus, note: Note) -> Tokenizer:
    """The run's tokenizer, after a check that the corpus is the run's text. An RGPT file gets the corpus's own."""
    header = checkpoint.header
    tokenizer = tokenizer_of(header)
    if tokenizer is None:
        tokenizer = make_tokenizer(corpus, config.data, note)
        require_vocab(config.data.vocab or f"corpus {corpus.name}", tokenizer, header.vocab_size)
        return tokenizer
    if corpus.fingerprint != header.corpus:
        raise ResumeRefused(
            f"corpus {corpus.name} is not the text of this run: SHA-256 {corpus.fingerprint[:12]}..., the "
            f"checkpoint has {str(header.corpus)[:12]}...; give the same --corpus, or start anew with --fine-tune"
        )
    for change in _changes(header.config, config):
        note(change)
    return tokenizer


def _changes(old: Config, new: Config) -> list[str]:
    """One line for each setting that a resumed run changes."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{table}.{key} is {value} from here, it was {before[table][key]}"
        for table, settings in after.items()
        for key, value in settings.items()
        if value not in (before[table][key], UNTIL_TIME_IS_UP)
    ]
