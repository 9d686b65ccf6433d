"""`mlxgpt eval`: measures how well a checkpoint predicts a text, by default the validation split of its own corpus.

With --text, it judges the text that the checkpoint generates.
"""

import dataclasses
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
@click.option("--text", "judge", is_flag=True, help="Judge generated text instead.")
@click.option("--samples", type=click.IntRange(1), help="Texts that --text generates.  [default: 5]")
@click.option("--max-tokens", type=click.IntRange(1), help="Largest number of tokens of a text.  [default: 500]")
@click.option("--temp", "temperature", type=float, help="Sampling temperature of --text.  [default: 0.8]")
@click.option("--top-p", type=float, help="Nucleus sampling of --text.  [default: 0.9]")
@click.option("--seed", type=click.IntRange(0), help="Random seed of --text.  [default: 0]")
@preset_option
@vocab_option
@set_option
@json_option
def eval_command(checkpoint, corpus, split, batch, judge, preset, vocab, sets, as_json, **options):
    """Measure loss, perplexity and bits per byte over a whole split, or judge generated text.

    By default, CHECKPOINT is the best checkpoint of the newest run, and the corpus is the corpus of that run. A .bin
    file of randyGPT contains neither corpus nor tokenizer. Give its training text with --corpus.

    With --text, texts are generated without a prompt. Measures of their repetition and of their likeness to the
    training text are printed beside those of passages of the validation text.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given and not judge:
        option = {"temperature": "temp"}.get(name := next(iter(given)), name).replace("_", "-")
        raise UserError(f"--{option} is an option of --text; add --text, or leave it out")
    if judge and (split, batch) != ("val", 16):
        raise UserError("--split and --batch have no effect on generated text; leave them out, or leave out --text")
    path = checkpoint or run.newest_checkpoint()
    model = run.load_with_tokenizer(path, preset, sizes_from(sets), corpus, vocab)
    if judge:
        _print_text(path, api.evaluate_text(model, corpus or None, note=note, **given), as_json)
        return
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
                "H": result.entropy,
                "H-CE": result.entropy - result.loss,
                "tokens": result.tokens,
            }
        )
    else:
        click.echo(
            f"{path} on {name} ({split}): loss {result.loss:.4f} nats/token, ppl {result.ppl:.2f}, "
            f"{result.bits_per_byte:.3f} bits/byte, H {result.entropy:.4f}, "
            f"H-CE {result.entropy - result.loss:.4f}, {result.tokens:,} tokens"
        )


# Measure -> its label and format in the table.
LABELS = {
    "characters": ("characters", ","),
    "words": ("words", ","),
    "repeated_4grams": ("repeated runs of 4 words", ".1%"),
    "known_words": ("words of the training text", ".1%"),
    "distinct_1": ("distinct words", ".1%"),
    "distinct_2": ("distinct runs of 2 words", ".1%"),
    "distinct_3": ("distinct runs of 3 words", ".1%"),
    "line_length": ("characters per line", ".1f"),
    "longest_line": ("longest line", ","),
    "longest_copy": ("longest copied passage", ","),
    "speaker_lines": ("lines of the form NAME:", ".1%"),
    "known_speakers": ("of these, known names", ".1%"),
}


def _print_text(path: Path, result, as_json: bool) -> None:
    """Prints the measures of generated text, as a table or as JSON."""
    rows = {"generated": dataclasses.asdict(result.generated), "validation": dataclasses.asdict(result.validation)}
    if as_json:
        echo_json({"checkpoint": path, **rows, "texts": result.texts})
        return
    click.echo(f"{len(result.texts)} texts of {path}\n{'':<28} {'generated':>10} {'validation':>10}")
    for name, (label, form) in LABELS.items():
        values = [row[name] for row in rows.values()]
        if values != [None, None]:
            shown = ("-" if value is None else format(value, form) for value in values)
            click.echo(f"{label:<28} {' '.join(f'{text:>10}' for text in shown)}")
    click.echo(f"copied: {rows['generated']['copy']!r}")
