"""`mlxgpt eval`: how well a checkpoint predicts text it has not trained on."""

from pathlib import Path

import click

from mlx_gpt.cli.options import (
    corpus_option,
    echo_json,
    json_option,
    note,
    preset_option,
    set_option,
    sizes_from,
    vocab_option,
)
from mlx_gpt.device.report import prepare


@click.command("eval")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@corpus_option
@click.option("--split", type=click.Choice(["val", "train", "all"]), default="val", help="Which part of the corpus.")
@click.option("--batch", type=click.IntRange(1, 4096), default=16, help="Windows at a time.")
@preset_option
@vocab_option
@set_option
@json_option
def evaluate(checkpoint, corpus, split, batch, preset, vocab, sets, as_json):
    """Loss, perplexity and bits per byte over a whole split.

    CHECKPOINT is the best of the newest run by default, the corpus its own. A randyGPT .bin needs its --corpus.
    """
    from mlx_gpt.api import read_checkpoint, to_run, with_text
    from mlx_gpt.cli.session import newest_checkpoint
    from mlx_gpt.errors import UserError

    prepare()
    path = checkpoint or newest_checkpoint()
    checkpoint = read_checkpoint(path, preset, sizes_from(sets))
    if checkpoint.header.tokenizer is None and not (corpus or vocab):
        raise UserError(f"{path}: holds no tokenizer; name the text it was trained on with --corpus, or its --vocab")
    # A checkpoint's own tokenizer reads any corpus.
    run = to_run(with_text(checkpoint, None if checkpoint.header.tokenizer else corpus, vocab))
    result, name = evaluation(run, corpus or run.config.data.corpus, split, batch, note)
    if as_json:
        echo_json(
            {
                "checkpoint": path,
                "corpus": name,
                "split": split,
                "loss": result.loss,
                "ppl": result.ppl,
                "bits_per_byte": result.bits_per_byte,
                "tokens": result.tokens,
            }
        )
    else:
        click.echo(
            f"{path} on {name} ({split}): loss {result.loss:.4f} nats/token, ppl {result.ppl:.2f}, "
            f"{result.bits_per_byte:.3f} bits/byte, {result.tokens:,} tokens"
        )


def evaluation(run, specs, split: str, batch: int, say):
    """The evaluation of a loaded run over a whole split of a text, and the text's name; `say` tells of the text."""
    from mlx_gpt.data.corpus import open_corpus
    from mlx_gpt.data.encoding import encode
    from mlx_gpt.data.windows import Windows
    from mlx_gpt.train.evaluate import Evaluator

    data, text = run.config.data, open_corpus(specs)
    tokens = encode(text, run.tokenizer, say, data.unknown == "refuse")
    train, val = tokens.split(data.val_fraction)
    chosen = {"train": train, "val": val, "all": tokens}[split]
    windows = Windows(chosen, run.config.model.block_size, tokens.fits(data.device_mb))
    evaluator = Evaluator(run.model, windows, run.tokenizer.token_bytes(), run.config.train.dtype)
    return evaluator(run.model.weights(), windows.sweep(batch)), text.name
