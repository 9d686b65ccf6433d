"""Where a run begins: its folder, its config, its checkpoint, its text; everything a trainer is given."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gpt import rng
from mlx_gpt.api import read_checkpoint, require_vocab, tokenizer_of
from mlx_gpt.bench.case import Case
from mlx_gpt.bench.tuner import tuned
from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.cli.options import NEWEST, network_of
from mlx_gpt.config.presets import load_toml, preset_of, resolve
from mlx_gpt.config.schema import UNTIL_TIME_IS_UP, Config
from mlx_gpt.config.table import merge, nest
from mlx_gpt.data.corpus import Corpus, corpus_name, open_corpus
from mlx_gpt.data.encoding import encode, make_tokenizer
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.lanes import divide, lanes
from mlx_gpt.device.mlx import buffer_variables, mx
from mlx_gpt.device.report import prepare
from mlx_gpt.errors import BadFile, OutOfRoom, ResumeRefused, UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.model.cost import step_bytes
from mlx_gpt.model.gpt import GPT, roles_of
from mlx_gpt.model.mixers.kernels import kernel_of
from mlx_gpt.optim.optimizers import Optimizer
from mlx_gpt.train.evaluate import Evaluator, Validation
from mlx_gpt.train.objective import make_objective
from mlx_gpt.train.parallel import Alone
from mlx_gpt.train.source import TextSource
from mlx_gpt.train.trainer import BEST, LATEST, Trainer

RUNS = Path("runs")
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What the user asked for on the command line."""

    preset: str | None
    recipe: str | None
    overrides: dict[str, Any]
    out: Path | None
    resume: str | None  # a file, a folder, or NEWEST
    fine_tune: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """The run's first state, its text, and its folder, which is None until a new one is made."""

    header: Header
    weights: store.Tensors | None
    optimizer: store.Tensors | None
    corpus: Corpus
    tokenizer: Tokenizer
    folder: Path | None


def begin(wish: Wish, note: Note) -> Start:
    """Finds out what to train from what. Raises ResumeRefused where a checkpoint does not belong."""
    if wish.resume is not None and wish.fine_tune:
        raise UserError("--resume goes on with a run, --fine-tune starts a new one from its weights; give one of them")
    if wish.resume is not None:
        return _resumed(wish, note)
    if wish.fine_tune:
        return _fine_tuned(wish, note)
    config = _resolved(wish.preset or "model-l", wish.recipe, wish.overrides, note)
    corpus = _opened(config, note)
    tokenizer = make_tokenizer(corpus, config.data, note)
    return Start(
        header=_fresh_header(config, corpus, tokenizer),
        weights=None,
        optimizer=None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=None,
    )


def new_folder(wish: Wish, config: Config) -> Path:
    """--out, or runs/<preset>-<corpus>, numbered if taken. A folder that holds a run already is refused."""
    if wish.out:
        if _is_run(wish.out):
            raise UserError(f"{wish.out}: already holds a run; go on with it by --resume, or choose another --out")
        return wish.out
    preset = Path(wish.preset).stem if wish.preset else preset_of(config.model) or "custom"
    name = f"{preset}-{corpus_name(config.data.corpus)}"
    numbered = (RUNS / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def newest_run() -> Path:
    """The run folder whose checkpoints changed last."""
    checkpoints = [p for p in RUNS.glob("*/*.safetensors") if p.name in (LATEST, BEST)]
    if not checkpoints:
        raise UserError(f"no checkpoints in {RUNS}/; make one with: mlxgpt train, or name a file")
    return max(checkpoints, key=lambda p: p.stat().st_mtime).parent


def newest_checkpoint() -> Path:
    """The best checkpoint of the newest run."""
    return best_checkpoint(newest_run())


def best_checkpoint(folder: Path) -> Path:
    """A run's best checkpoint; its latest where nothing was evaluated yet."""
    best = folder / BEST
    return best if best.exists() else folder / LATEST


def make_trainer(start: Start, folder: Path, note: Note) -> Trainer:
    """The trainer of a run that begins at `start`. Puts the model and the text on the device."""
    config, tokenizer = start.header.config, start.tokenizer
    os.environ.update(buffer_variables(config.speed))  # before the device is first used
    prepare(config.train.dtype)
    _require_memory(config, tokenizer.vocab_size)
    data, block_size = config.data, config.model.block_size
    tokens = encode(start.corpus, tokenizer, note, data.unknown == "refuse")
    on_device = tokens.fits(data.device_mb)
    train, val = tokens.split(data.val_fraction)
    if len(train) <= block_size or len(val) < 2:
        shorter = len(train) // 4
        raise UserError(
            f"corpus {start.corpus.name}: {len(train)} training and {len(val)} validation tokens, a window needs "
            f"{block_size + 1}; give a longer text"
            + (f", or --set model.block_size={shorter}" if shorter >= 8 and len(val) > 1 else "")
        )
    model = GPT(config.model, tokenizer.vocab_size, config.train.seed, config.speed)
    val = Windows(val, block_size, on_device)
    if start.weights:
        model.set_weights({name: mx.array(w) for name, w in start.weights.items()})
    return Trainer(
        header=start.header,
        model=model,
        optimizer=Optimizer(config.optimizer, roles_of(config.model, tokenizer.vocab_size)),
        optimizer_state=start.optimizer,
        objective=make_objective(config.train.objective),
        source=TextSource(Windows(train, block_size, on_device), config.train),
        validation=Validation(Evaluator(model, val, tokenizer.token_bytes(), config.train.dtype), val, config.train),
        group=Alone(),
        folder=folder,
    )


def bench_case(preset: str, settings: dict[str, Any], note: Note, use_tuned: bool = True) -> Case:
    """What `mlxgpt bench` has computed: the preset's shape on the training text, which is taken as one document."""
    settings = {"optimizer.name": "adamw", "optimizer.ema_decay": 0.0} | settings  # which all contenders have
    config = _resolved(preset, None, settings, note) if use_tuned else resolve(preset, None, settings)
    corpus = open_corpus(config.data.corpus)
    tokenizer = make_tokenizer(corpus, config.data, note)
    _require_memory(config, tokenizer.vocab_size)
    tokens = encode(corpus, tokenizer, note)
    ids = np.array(tokens.ids.host[: int(len(tokens) * (1 - config.data.val_fraction))])
    windows = Windows(Tokens.of(ids, [len(ids)]), config.model.block_size)
    batch = windows.batch(windows.draw(config.train.seed, rng.WINDOWS, 0, config.train.sequences_per_step))
    return Case(
        config=config,
        vocab_size=tokenizer.vocab_size,
        weights={name: np.array(w) for name, w in GPT(config.model, tokenizer.vocab_size).weights().items()},
        ids=ids,
        inputs=np.array(batch.inputs),
        targets=np.array(batch.targets),
    )


def _resolved(preset: str | None, recipe: str | None, overrides: dict[str, Any], note: Note) -> Config:
    """The config with what was tuned for this device and shape; says so."""
    found = tuned(resolve(preset, recipe, overrides).model)
    config = resolve(preset, recipe, overrides, found)
    used = [f"{key}={value}" for key, value in found.items() if config.get(key) == value]
    if used:
        note(f"tuned for this device: {', '.join(used)} (MLXGPT_TUNED=off does without)")
    return config


def _require_memory(config: Config, vocab_size: int) -> None:
    """Refuses beforehand what would end in the system's out-of-memory killer."""
    speed, train = config.speed, config.train
    streams = lanes(speed.lanes)
    parts = divide(train.sequences_per_step, train.batch_size, streams, config.model.block_size)
    rows = min(len(streams), len(parts)) * max(end - first for first, end, _ in parts)
    needed = step_bytes(config.model, vocab_size, rows, kernel_of(speed.attention) == "blocks", speed.remat)
    if needed > mx.get_memory_limit():
        raise OutOfRoom(
            f"a step of {config.train.batch_size} sequences needs about {needed / 1e9:.1f} GB, MLX may use "
            f"{mx.get_memory_limit() / 1e9:.1f} GB here; lower --batch and raise --accum by as much, or take a smaller "
            "--preset"
        )


def save_config(folder: Path, config: Config) -> None:
    """Keeps the resolved settings with the run, as a file that --preset takes."""
    write_atomic(folder / "run.toml", [config.to_toml().encode()])


def _opened(config: Config, note: Note) -> Corpus:
    corpus = open_corpus(config.data.corpus)
    for line in corpus.notes:
        note(line)
    return corpus


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Keeps a byte-pair encoding with the run, as a file that --vocab takes."""
    if tokenizer.kind != "char":
        write_atomic(folder / tokenizer.file_name, [tokenizer.to_file().encode()])


def _fresh_header(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Header:
    return Header(
        config=config,
        vocab_size=tokenizer.vocab_size,
        step=0,
        num_updates=0,
        tokenizer=tokenizer.to_dict(),
        corpus=corpus.fingerprint,
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LATEST, BEST))


def _resumed(wish: Wish, note: Note) -> Start:
    checkpoint, folder = _checkpoint_to_resume(wish, note)
    checkpoint = checkpoint.as_trained()
    header = checkpoint.header
    config = _resumed_config(checkpoint, wish)
    try:
        corpus = _opened(config, note)
    except UserError as error:
        if "data.corpus" in wish.overrides:
            raise
        raise type(error)(f"{error}; it is what this run was trained on, and --corpus says where it is now") from None
    tokenizer = tokenizer_of(header)
    if tokenizer:
        if corpus.fingerprint != header.corpus:
            raise ResumeRefused(
                f"corpus {corpus.name} is not the text of this run: SHA-256 {corpus.fingerprint[:12]}..., the "
                f"checkpoint has {str(header.corpus)[:12]}...; give the same --corpus, or start anew with --fine-tune"
            )
        for change in _changes(header.config, config):
            note(change)
    else:  # an RGPT file
        tokenizer = make_tokenizer(corpus, config.data, note)
        require_vocab(config.data.vocab or f"corpus {corpus.name}", tokenizer, header.vocab_size)
    optimizer = Optimizer(config.optimizer, roles_of(config.model, header.vocab_size))
    has_moments = optimizer.required_tensors() <= checkpoint.optimizer.keys()
    if not has_moments:
        note(f"no optimizer moments of {config.optimizer.name} in this file: they start afresh")
    header = dataclasses.replace(
        header,
        config=config,
        tokenizer=tokenizer.to_dict(),
        corpus=corpus.fingerprint,
        planned=header.planned and not {"train.iters", "train.minutes"} & wish.overrides.keys(),
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


def _checkpoint_to_resume(wish: Wish, note: Note) -> tuple[Checkpoint, Path | None]:
    """The checkpoint, and the run folder to go on in; None for a new one."""
    if wish.resume == "":
        raise UserError("--resume is empty; name a file or a run folder, or give it alone for the newest run")
    if wish.resume == NEWEST and wish.out and not wish.out.is_dir():
        raise UserError(f"--out {wish.out}: no run there to go on with; leave --resume out to start one")
    path = Path(wish.resume) if wish.resume != NEWEST else wish.out or newest_run()
    if path.is_dir():
        checkpoint, folder = _newest_valid(path, wish, note), path
    else:
        checkpoint = read_checkpoint(path, wish.preset, network_of(wish.overrides))
        folder = path.parent if path.name == LATEST and _is_run(path.parent) else None
    if folder is None or wish.out not in (None, folder):
        note(f"going on from {path} in a new run folder")
        folder = None
    return checkpoint, folder


def _newest_valid(folder: Path, wish: Wish, note: Note) -> Checkpoint:
    """The furthest of a run's checkpoints that is whole. A corrupt one is put aside, never written over."""
    found, broken = [], []
    for path in (folder / LATEST, folder / BEST):
        if path.exists():
            try:
                found.append(read_checkpoint(path, wish.preset, network_of(wish.overrides)))
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


def _resumed_config(checkpoint: Checkpoint, wish: Wish) -> Config:
    """The run's own config with what was given anew; the shape and the split can't change."""
    header = checkpoint.header
    if header.tokenizer is None:  # an RGPT file holds a shape, perhaps AdamW's moments, and nothing else
        overrides = {
            k: v for k, v in wish.overrides.items() if k.removeprefix("model.") not in header.config.model.shape()
        }
        shape = {f"model.{k}": v for k, v in header.config.model.shape().items()}
        return resolve(None, wish.recipe, overrides | shape, base={"optimizer.name": "adamw"})
    tables = header.config.to_dict()
    if wish.recipe:
        tables = merge(tables, load_toml("presets/recipes", wish.recipe))
    config = Config.from_dict(merge(tables, nest(wish.overrides)))
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


def _changes(old: Config, new: Config) -> list[str]:
    """One line for each setting that a resumed run does otherwise from here on."""
    before, after = old.to_dict(), new.to_dict()
    return [
        f"{table}.{key} is {value} from here, it was {before[table][key]}"
        for table, settings in after.items()
        for key, value in settings.items()
        if value not in (before[table][key], UNTIL_TIME_IS_UP)
    ]


def _fine_tuned(wish: Wish, note: Note) -> Start:
    """Weights and tokenizer of a checkpoint; everything else starts afresh."""
    checkpoint = read_checkpoint(wish.fine_tune, wish.preset, network_of(wish.overrides))
    shape = {f"model.{k}": v for k, v in checkpoint.header.config.model.architecture().items()}
    own_text = {"data.corpus": checkpoint.header.config.data.corpus} if checkpoint.header.corpus else {}
    config = _resolved(None, wish.recipe, own_text | wish.overrides | shape, note)
    corpus = _opened(config, note)
    tokenizer = tokenizer_of(checkpoint.header) or make_tokenizer(corpus, config.data, note)
    require_vocab(config.data.vocab or f"corpus {corpus.name}", tokenizer, checkpoint.header.vocab_size)
    note(f"fine-tuning the weights of {wish.fine_tune}")
    return Start(
        header=_fresh_header(config, corpus, tokenizer),
        weights=checkpoint.weights,
        optimizer=None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=None,
    )
