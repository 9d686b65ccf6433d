"""The initial state of a run: new, fine-tuned from another checkpoint, or resumed."""

import dataclasses
from typing import Any

from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.budget import with_iters
from mlx_gpt.config.effects import without_effect
from mlx_gpt.config.presets import load_toml, resolve
from mlx_gpt.config.schema import Config
from mlx_gpt.data.corpus import Corpus
from mlx_gpt.data.encoding import make_tokenizer
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import Mismatch, ResumeRefused, UserError
from mlx_gpt.model.gpt import shapes_of
from mlx_gpt.model.packing import is_ternary
from mlx_gpt.run import tuned
from mlx_gpt.run.budget import with_budget
from mlx_gpt.run.build import Start, open_text, require_known_length
from mlx_gpt.run.loading import (
    read_checkpoint,
    require_trainable,
    require_vocab,
    tokenizer_of,
    tokenizer_settings,
)
from mlx_gpt.run.request import Note, Request, network_of
from mlx_gpt.run.resume import resumed

DEFAULT_PRESET = "model-l"
# Settings of the network that fine-tuning may change, as long as the weights keep their names and shapes.
ADAPTABLE = ("block_size", "rope_scale", "linear", "ternary_group", "ternary_activations", "ternary_norm")


def begin(request: Request, note: Note, processes: int = 1) -> Start:
    """Returns the initial state of the requested run. Opens its corpus, and makes or loads its tokenizer.

    Args:
        request: The request.
        note: Called with one line for each thing the user should know.
        processes: The number of processes that train together.

    Raises:
        ResumeRefused: The checkpoint to resume does not match the request.
        Mismatch: The checkpoint to fine-tune does not match the request.
        BadFile: A file is corrupt.
        UserError: A setting, a name or a path is wrong.
    """
    if request.resume is not None:
        try:
            start = resumed(request, note)
        except Mismatch as error:
            raise ResumeRefused(str(error)) from None
    elif request.fine_tune:
        start = _fine_tuned(request, note)
    else:
        return _new(request, note, processes)
    if request.preset:
        _note_other_tables(request.preset, note)
    return start


def _new(request: Request, note: Note, processes: int) -> Start:
    """The initial state of a new run with new weights."""
    preset = DEFAULT_PRESET if request.preset is None else request.preset
    config = resolved(preset, request.recipe, request.settings, note, request.base)
    for line in without_effect(config, request.settings):
        note(line)
    request.note_corpus(config.data.corpus, note)
    corpus = open_text(config, note)
    tokenizer = make_tokenizer(corpus, config.data, note)
    start = Start(
        header=_new_header(config, corpus, tokenizer),
        weights=None,
        optimizer=None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=None,
    )
    return with_budget(start, preset, request, processes, note)


def resolved(
    preset: str | None, recipe: str | None, settings: dict[str, Any], note: Note, base: dict[str, Any] | None = None
) -> Config:
    """Returns the settings of a new run.

    The sources, from the lowest to the highest precedence, are: the defaults, `base`, the settings that
    `mlxgpt bench --tune` stored for this device and network, the preset, the recipe, and `settings`.
    """
    found = tuned.settings_for(resolve(preset, recipe, settings).model)
    config = resolve(preset, recipe, settings, (base or {}) | found)
    used = [f"{key}={value}" for key, value in found.items() if config.get(key) == value]
    if used:
        note(f"tuned for this device: {', '.join(used)} (MLXGPT_TUNED=off ignores these settings)")
    return config


def _note_other_tables(preset: str, note: Note) -> None:
    """Notes that a preset describes only the network if a run continues or begins from a checkpoint."""
    if others := sorted(load_toml("presets", preset).keys() - {"model"}):
        tables = ", ".join(f"[{name}]" for name in others)
        note(f"preset {preset}: only [model] counts for a checkpoint, {tables} of its file are left out")


def _fine_tuned(request: Request, note: Note) -> Start:
    """The initial state of a new run with the weights and the tokenizer of a checkpoint.

    Without `data.corpus` in the request, the run trains on the corpus that the checkpoint names, or on the request's
    default corpus if the checkpoint names none. If there is no such corpus either, this is an error. If the checkpoint
    contains no tokenizer, the tokenizer is made from the corpus. A checkpoint that was read from an RGPT file has
    neither.
    """
    checkpoint = _adapted(request, note)
    shape = {f"model.{k}": v for k, v in checkpoint.header.config.model.architecture().items()}
    own_text = {"data.corpus": checkpoint.header.config.data.corpus} if checkpoint.header.corpus else {}
    own_tokenizer = tokenizer_settings(checkpoint.header, request.settings)
    if not (own_text or request.default_corpus or "data.corpus" in request.settings):
        raise UserError(f"{request.fine_tune}: names no text; give the text to train on with --corpus")
    settings = own_text | request.settings | shape | own_tokenizer
    config = resolved(None, request.recipe, settings, note, request.base)
    require_known_length(config, settings)
    config = with_iters(config)
    for line in without_effect(config, request.settings):
        note(line)
    request.note_corpus(config.data.corpus, note)
    corpus = open_text(config, note)
    tokenizer = tokenizer_of(request.fine_tune, checkpoint.header) or make_tokenizer(corpus, config.data, note)
    origin = config.data.vocab or f"corpus {corpus.name}"
    require_vocab(str(request.fine_tune), origin, tokenizer, checkpoint.header.vocab_size)
    with_objective = f" with the objective {config.train.objective}" if request.with_rewards else ""
    note(f"fine-tuning the weights of {request.fine_tune}{with_objective}")
    return Start(
        header=_new_header(config, corpus, tokenizer),
        weights=checkpoint.weights,
        optimizer=None,
        corpus=corpus,
        tokenizer=tokenizer,
        folder=None,
    )


def _adapted(request: Request, note: Note) -> Checkpoint:
    """Reads the checkpoint to fine-tune, with the settings of ADAPTABLE that the request changes.

    Raises:
        Mismatch: The request asks for another network with other weights, or for ternary matrices where the checkpoint
            holds ternary values already.
    """
    wanted = network_of(request.settings)
    changed = {name: value for name, value in wanted.items() if name in ADAPTABLE}
    try:
        checkpoint = read_checkpoint(request.fine_tune, request.preset, wanted)
    except Mismatch:
        if not changed:
            raise
        kept = {name: value for name, value in wanted.items() if name not in changed}
        checkpoint = read_checkpoint(request.fine_tune, request.preset, kept)
    require_trainable(request.fine_tune, checkpoint)
    header = checkpoint.header
    model = dataclasses.replace(header.config.model, **changed)
    if shapes_of(model, header.vocab_size) != shapes_of(header.config.model, header.vocab_size):
        raise Mismatch(
            f"{request.fine_tune}: with {', '.join(f'model.{k}={v}' for k, v in changed.items())} the network has "
            "other weights than the checkpoint; leave these settings out"
        )
    if model.linear == "ternary" != header.config.model.linear and is_ternary(checkpoint.weights):
        raise Mismatch(
            f"{request.fine_tune}: its matrices hold ternary values, and their scales would change; give the "
            "checkpoint that they were exported from, or leave out model.linear=ternary"
        )
    before = header.config.model.architecture()
    for name, value in model.architecture().items():
        if value != before[name]:
            note(f"model.{name} is {value}, and was {before[name]} in {request.fine_tune}")
    config = dataclasses.replace(header.config, model=model)
    return dataclasses.replace(checkpoint, header=dataclasses.replace(header, config=config))


def _new_header(config: Config, corpus: Corpus, tokenizer: Tokenizer) -> Header:
    return Header(
        config=config,
        vocab_size=tokenizer.vocab_size,
        step=0,
        num_updates=0,
        tokenizer=tokenizer.to_dict(),
        corpus=corpus.fingerprint,
        division=corpus.division,
    )
