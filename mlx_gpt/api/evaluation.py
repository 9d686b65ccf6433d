"""`evaluate`: measures how well a model predicts a text."""

from collections.abc import Sequence
from pathlib import Path

from mlx_gpt.data.corpus import open_corpus
from mlx_gpt.data.encoding import encode
from mlx_gpt.data.windows import Windows
from mlx_gpt.device.report import prepare
from mlx_gpt.errors import UserError
from mlx_gpt.run.loading import Run, require_context, require_run
from mlx_gpt.run.request import Note, ignore, specs_of
from mlx_gpt.train.evaluate import Evaluation, Evaluator

SPLITS = ("val", "train", "all")


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
    if run.tokenizer is None:
        raise UserError("the checkpoint has no tokenizer; load it with the corpus or the vocab it was trained with")
    if corpus is None and run.header.corpus is None:
        raise UserError("the checkpoint does not name the text that it was trained on; name one with --corpus")
    require_context(run)
    prepare()
    data = run.config.data
    tokens = encode(open_corpus(specs_of(corpus or data.corpus)), run.tokenizer, note, data.unknown == "refuse")
    train, val = tokens.split(data.val_fraction)
    chosen = {"train": train, "val": val, "all": tokens}[split]
    windows = Windows(chosen, run.config.model.block_size, tokens.fits(data.device_mb))
    evaluator = Evaluator(run.model, windows, run.tokenizer.token_bytes(), run.config.train.dtype)
    return evaluator(run.model.weights(), windows.sweep(batch_size))
