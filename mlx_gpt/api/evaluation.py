"""`evaluate` measures how well a model predicts a text. `evaluate_text` judges the text that a model generates."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.data.corpus import Piece, documents, open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.measures import Measures, measure
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.data.tokens import Tokens
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.report import prepare
from mlx_gpt.errors import UserError
from mlx_gpt.generation.sampling import Sampling
from mlx_gpt.generation.text import TextStream
from mlx_gpt.run.loading import Run, require_context, require_run
from mlx_gpt.run.request import Note, ignore, specs_of
from mlx_gpt.train.evaluate import Evaluation, Evaluator

SPLITS = ("val", "train", "all")
CHUNK = 1 << 16  # ids that are decoded at a time
SEARCHED = 200  # characters in which a passage of the validation text looks for the beginning of a line


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEvaluation:
    """The judgement of generated text.

    Attributes:
        generated: measures of the generated texts.
        validation: measures of passages of the validation text, as many and about as long.
        texts: the generated texts.
    """

    generated: Measures
    validation: Measures
    texts: list[str]


def evaluate(
    run: Run,
    corpus: str | Path | Sequence[str | Path] | None = None,
    split: str = "val",
    batch_size: int = 16,
    note: Note = ignore,
) -> Evaluation:
    """Measures loss, perplexity and bits per byte over a whole split of a text.

    Args:
        run: A model from `load`.
        corpus: Corpus names, files, folders or patterns. [default: the corpus the model was trained on]
        split: "val", the last part of each text, as large as the run's setting data.val_fraction; "train", the part
            before it; or "all". Training on a text does not use its "val" part.
        batch_size: The number of windows per batch.
        note: Called with each message for the user, one line of text.

    Returns:
        An Evaluation: `loss` in nats per token, perplexity `ppl`, `bits_per_byte` (UTF-8), `entropy` of the predictions
        in nats per token, and `tokens`, the number of predicted tokens.

    Raises:
        UserError: The run has no tokenizer, no corpus is given and the training text is not known, a corpus does not
            exist, or an argument is out of range.
        BadFile: A corpus cannot be read.
        OutOfRoom: A full context of the model needs more memory than MLX may use.
    """
    require_run(run)
    if split not in SPLITS:
        raise UserError(f"split={split!r} is not allowed; choose from {', '.join(SPLITS)}")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not allowed; give 1 or more")
    tokens, data = _encoded(run, corpus, note), run.config.data
    train, val = tokens.split(data.val_fraction)
    chosen = {"train": train, "val": val, "all": tokens}[split]
    windows = Windows(chosen, run.config.model.block_size, tokens.fits(data.device_mb))
    evaluator = Evaluator(run.model, windows, run.tokenizer.token_bytes(), run.config.train.dtype)
    return evaluator(run.model.weights(), windows.sweep(batch_size))


def evaluate_text(
    run: Run,
    corpus: str | Path | Sequence[str | Path] | None = None,
    *,
    samples: int = 5,
    max_tokens: int = 500,
    temperature: float = 0.8,
    top_p: float = 0.9,
    seed: int = 0,
    note: Note = ignore,
) -> TextEvaluation:
    """Generates texts without a prompt, and measures them beside passages of the validation text.

    Args:
        run: A model from `load`.
        corpus: Corpus names, files, folders or patterns. Their training split is the text that words, speakers and
            copied passages are looked up in. [default: the corpus the model was trained on]
        samples: The number of texts.
        max_tokens: The largest number of tokens of a text.
        temperature, top_p: How tokens are drawn, as in `generate`.
        seed: Text i is drawn with the seed `seed` + i. The passages follow the seed too.
        note: Called with each message for the user, one line of text.

    Raises:
        UserError, BadFile, OutOfRoom: As `evaluate` does.
    """
    require_run(run)
    for name, value in (("samples", samples), ("max_tokens", max_tokens)):
        if value < 1:
            raise UserError(f"{name}={value} is not allowed; give 1 or more")
    sampling = Sampling(temperature=temperature, top_p=top_p)
    train, val = _encoded(run, corpus, note).split(run.config.data.val_fraction)
    tokenizer = run.tokenizer
    texts = [
        "".join(
            TextStream(
                model=run.model, tokenizer=tokenizer, prompt=[], how=sampling, max_tokens=max_tokens, seed=seed + i
            )
        )
        for i in range(samples)
    ]
    passages = _passages(val, tokenizer, [len(text) for text in texts], max_tokens, seed)
    generated, validation = measure([texts, passages], _pieces(train, tokenizer))
    return TextEvaluation(generated=generated, validation=validation, texts=texts)


def _encoded(run: Run, corpus: str | Path | Sequence[str | Path] | None, note: Note) -> Tokens:
    """Opens and encodes a text, by default that of the run. Raises UserError, BadFile and OutOfRoom."""
    if run.tokenizer is None:
        raise UserError("the checkpoint has no tokenizer; load it with the corpus or the vocab it was trained with")
    if corpus is None and run.header.corpus is None:
        raise UserError("the checkpoint does not name the text that it was trained on; name one with --corpus")
    require_context(run)
    prepare()
    data = run.config.data
    return encode(open_corpus(specs_of(corpus or data.corpus)), run.tokenizer, note, data.unknown == "refuse")


def _pieces(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[Piece]:
    """Decodes documents, and yields their text in pieces. Words and lines lie within a piece."""
    for begin, length in zip(tokens.begins.tolist(), tokens.lengths.tolist(), strict=True):
        ids, decoder = tokens.ids.host[begin : begin + length], codecs.getincrementaldecoder("utf-8")("replace")
        chunks = (ids[i : i + CHUNK].tolist() for i in range(0, length, CHUNK))
        yield from documents(decoder.decode(b"".join(tokenizer.pieces[i] for i in chunk)) for chunk in chunks)


def _passages(val: Tokens, tokenizer: Tokenizer, lengths: list[int], max_tokens: int, seed: int) -> list[str]:
    """Returns a random passage of at most each of the given lengths, in characters.

    A passage begins at the beginning of a line if there is one near, and lies within a document.
    """
    starts, ends = Windows(val, max_tokens, on_device=False).draw(seed, "passages", 0, len(lengths))
    found = []
    for start, end, length in zip(starts.tolist(), ends.tolist(), lengths, strict=True):
        text = tokenizer.decode(val.ids.host[start : min(start + 2 * max_tokens + SEARCHED, end)].tolist())
        line = text.find("\n", 0, SEARCHED) + 1
        found.append(text[line : line + length])
    return found
