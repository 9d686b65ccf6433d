"""The Python interface: load a checkpoint of any format, call the model, generate text."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gpt.checkpoint import store
from mlx_gpt.checkpoint.store import Checkpoint, Header
from mlx_gpt.config.presets import load_toml
from mlx_gpt.config.schema import SHAPE_KEYS, Config, ModelConfig
from mlx_gpt.data.bpe import open_vocab, tokenizer_from_dict
from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.tokenizer import CharTokenizer, Tokenizer
from mlx_gpt.device.mlx import mx
from mlx_gpt.errors import BadFile, ResumeRefused, UserError
from mlx_gpt.formats import rgpt
from mlx_gpt.formats.huggingface import folder as huggingface
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextStream
from mlx_gpt.model.gpt import GPT


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A loaded checkpoint. `model(tokens)` gives logits (B, T, V) of ids (B, T); `tokenizer` is None if unknown."""

    model: GPT
    tokenizer: Tokenizer | None
    header: Header

    @property
    def config(self) -> Config:
        return self.header.config


def load(
    path,
    preset: str | None = None,
    n_embd: int | None = None,
    n_head: int | None = None,
    n_layer: int | None = None,
    block_size: int | None = None,
    corpus: str | Sequence[str] | None = None,
    vocab: str | None = None,
) -> Run:
    """Loads our safetensors or a randyGPT .bin file, verified.

    A .bin file names no shape: it follows from the preset, the sizes given, or the file's length. It holds no tokenizer
    either: `corpus` is the text whose characters it was trained on, `vocab` its vocab.json. Raises UserError, BadFile
    (corrupt), ResumeRefused (another shape).
    """
    sizes = {"n_embd": n_embd, "n_head": n_head, "n_layer": n_layer, "block_size": block_size}
    checkpoint = read_checkpoint(Path(path), preset, {k: v for k, v in sizes.items() if v is not None})
    return to_run(with_text(checkpoint, [corpus] if isinstance(corpus, str) else corpus, vocab))


def generate(
    run: Run,
    prompt: str = "",
    *,
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_p: float = 0.9,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Text that follows the prompt, in pieces as they are drawn.

    Raises UserError for a character the model never saw, before anything is written.
    """
    return iter(
        stream(run, prompt, Sampling(temperature=temperature, top_p=top_p, top_k=top_k), max_tokens, stop, seed)
    )


def stream(
    run: Run, prompt: str, how: Sampling, max_tokens: int, stop: Sequence[str] = (), seed: int = 0
) -> TextStream:
    """generate() as an object that tells afterwards how it ended."""
    if run.tokenizer is None:
        raise UserError(
            "this checkpoint holds no tokenizer; name the text it was trained on with --corpus, or its vocab.json "
            "with --vocab"
        )
    try:
        ids = run.tokenizer.encode(prompt).tolist()
    except UserError as error:
        raise UserError(f"prompt: {error}; use characters of the training text") from None
    return TextStream(
        model=run.model,
        tokenizer=run.tokenizer,
        prompt=ids,
        how=how,
        max_tokens=max_tokens,
        stop=tuple([stop] if isinstance(stop, str) else stop),
        seed=seed,
    )


def read_checkpoint(path: Path, preset: str | None = None, sizes: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint of any format. What preset and `sizes`, settings of [model], say must be the file's own."""
    wanted = (ModelConfig(**load_toml("presets", preset)["model"]).architecture() if preset else {}) | (sizes or {})
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir() and not huggingface.is_folder(path):
        inside = [path / name for name in ("best.safetensors", "checkpoint.safetensors") if (path / name).is_file()]
        if not inside:
            raise UserError(
                f"{path}: a folder without a checkpoint or a config.json; give a run, a checkpoint or an export"
            )
        path = inside[0]
    try:
        if path.is_dir():
            checkpoint = huggingface.read_folder(path)
        elif rgpt.is_rgpt(path):
            checkpoint = rgpt.read(path, {k: wanted[k] for k in SHAPE_KEYS if k in wanted})
        elif path.suffix == ".safetensors" or store.is_safetensors(path):
            ours = store.is_ours(path)
            checkpoint = store.load(path) if ours else huggingface.read_state_dict(path, wanted)
        else:
            raise BadFile(f"{path}: neither an RGPT file nor a safetensors file")
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror}") from None
    own = checkpoint.header.config.model.architecture()
    if own | wanted != own:
        raise ResumeRefused(f"{path}: asked for {store.differences(wanted, own)}; leave the network to the file")
    return checkpoint


def with_text(checkpoint: Checkpoint, specs: Sequence[str] | None, vocab: str | None) -> Checkpoint:
    """The checkpoint with the tokenizer of a vocabulary file, or else of a corpus, if either is named."""
    if vocab:
        return with_vocab(checkpoint, open_vocab(Path(vocab)), vocab)
    return with_tokenizer(checkpoint, specs) if specs else checkpoint


def with_tokenizer(checkpoint: Checkpoint, specs: Sequence[str]) -> Checkpoint:
    """The checkpoint with the character vocabulary of the corpus it was trained on."""
    corpus = open_corpus(specs)
    checkpoint = with_vocab(checkpoint, CharTokenizer.train(corpus.texts()), f"corpus {corpus.name}")
    config = checkpoint.header.config.replace({"data.corpus": tuple(specs)})
    header = dataclasses.replace(checkpoint.header, corpus=corpus.fingerprint, config=config)
    return dataclasses.replace(checkpoint, header=header)


def with_vocab(checkpoint: Checkpoint, tokenizer: Tokenizer, origin: str) -> Checkpoint:
    """The checkpoint with a tokenizer, which must be its own if it has one."""
    header = checkpoint.header
    if header.tokenizer and header.tokenizer != tokenizer.to_dict():
        raise ResumeRefused(f"{origin} has another alphabet than the checkpoint's own tokenizer; leave it out")
    require_vocab(origin, tokenizer, header.vocab_size)
    return dataclasses.replace(checkpoint, header=dataclasses.replace(header, tokenizer=tokenizer.to_dict()))


def require_vocab(origin: str, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ResumeRefused unless the tokenizer has as many ids as the checkpoint."""
    if tokenizer.vocab_size != vocab_size:
        raise ResumeRefused(
            f"{origin} has a vocabulary of {tokenizer.vocab_size}, the checkpoint {vocab_size}; name the text it was "
            "trained on with --corpus, or its vocab.json with --vocab"
        )


def to_run(checkpoint: Checkpoint) -> Run:
    header = checkpoint.header
    model = GPT(header.config.model, header.vocab_size)
    model.set_weights({name: mx.array(w) for name, w in checkpoint.weights.items()})
    return Run(model=model, tokenizer=tokenizer_of(header), header=header)


def tokenizer_of(header: Header) -> Tokenizer | None:
    """The checkpoint's own tokenizer; None where it holds none, as in an RGPT file."""
    if header.tokenizer is None:
        return None
    tokenizer = tokenizer_from_dict(header.tokenizer)
    if tokenizer.vocab_size != header.vocab_size:
        raise BadFile(f"tokenizer of {tokenizer.vocab_size} ids in a checkpoint of {header.vocab_size}; it is corrupt")
    return tokenizer
