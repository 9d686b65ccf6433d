"""`mlxgpt eval`: measures how well a checkpoint predicts a text, by default the validation split of its own corpus."""

from pathlib import Path

import click

from mlx_gpt import api, data, run
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
from mlx_gpt.errors import UserError


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@corpus_option
@click.option(
    "--split", type=click.Choice(["val", "train", "all"]), default="val", help="Part of the corpus to evaluate."
)
@click.option("--batch", type=click.IntRange(1, 4096), default=16, help="Sequences per forward pass.")
@preset_option
@vocab_option
@set_option
@json_option
def eval_command(checkpoint, corpus, split, batch, preset, vocab, sets, as_json):
    """Measure loss, perplexity and bits per byte over a whole split.

    By default, CHECKPOINT is the best checkpoint of the newest run, and the corpus is the corpus of that run. A .bin
    file of randyGPT contains neither corpus nor tokenizer. Give its training text with --corpus.
    """
    path = checkpoint or run.newest_checkpoint()
    checkpoint = run.read_checkpoint(path, preset, sizes_from(sets))
    if checkpoint.header.tokenizer is None and not (corpus or vocab):
        raise UserError(
            f"{path}: the checkpoint has no tokenizer; give the text it was trained on with --corpus, or its "
            "vocabulary with --vocab"
        )
    # If the checkpoint has a tokenizer, --corpus is only the text to evaluate. If it has none, with_text() also builds
    # the tokenizer from the characters of --corpus.
    model = run.to_run(path, run.with_text(path, checkpoint, None if checkpoint.header.tokenizer else corpus, vocab))
    result = api.evaluate(model, corpus or None, split, batch, note)
    name = data.corpus_name(corpus or model.config.data.corpus)
    if as_json:
        echo_json(
            {
                "checkpoint": path,
                "corpus": name,
                "split": split,
                "loss": result.loss,
                "ppl": result.ppl,
                "bits_per_byte": result.bits_per_byte,
                "entropy": result.entropy,
                "tokens": result.tokens,
            }
        )
    else:
        click.echo(
            f"{path} on {name} ({split}): loss {result.loss:.4f} nats/token, ppl {result.ppl:.2f}, "
            f"{result.bits_per_byte:.3f} bits/byte, entropy {result.entropy:.4f}, {result.tokens:,} tokens"
        )
