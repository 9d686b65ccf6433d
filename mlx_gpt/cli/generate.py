"""`mlxgpt generate`: generates the text that follows a prompt."""

import secrets
import sys
import time
from pathlib import Path

import click

from mlx_gpt import api, generation, run
from mlx_gpt.cli.options import (
    corpus_option,
    echo_json,
    json_option,
    preset_option,
    set_option,
    sizes_from,
    vocab_option,
)
from mlx_gpt.errors import UserError
from mlx_gpt.parse import read_text


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option("--prompt", "-p", default="", help='Text to continue; "-" reads it from stdin.')
@click.option("--suffix", help="Text that follows the generated text; for a model that was trained with data.fim_rate.")
@click.option("--max-tokens", type=int, default=200, help="Maximum number of tokens to generate.")
@click.option(
    "--temp",
    "--temperature",
    "temperature",
    type=float,
    default=0.8,
    help="Sampling temperature; 0 takes the most likely token.",
)
@click.option(
    "--top-p", type=float, default=0.9, help="Sample from the most likely tokens whose probabilities add up to this."
)
@click.option("--top-k", type=int, default=0, help="Sample from the k most likely tokens; 0 keeps all.")
@click.option(
    "--min-p", type=float, default=0.0, help="Remove tokens less likely than this share of the most likely one's."
)
@click.option(
    "--repetition-penalty",
    type=float,
    default=1.0,
    help="Divide the positive logits of tokens of the prompt and the text by this, and multiply the negative ones.",
)
@click.option(
    "--frequency-penalty",
    type=float,
    default=0.0,
    help="Subtract this from a token's logit each time the text has it.",
)
@click.option(
    "--presence-penalty",
    type=float,
    default=0.0,
    help="Subtract this once from the logit of each token of the text.",
)
@click.option(
    "--logit-bias",
    multiple=True,
    metavar="ID=VALUE",
    callback=lambda _context, _option, values: _biases(values),
    help="Add VALUE, -100 to 100, to the logit of token ID; repeatable.",
)
@click.option("--seed", type=int, help="Random seed; the same seed gives the same text.  [default: random]")
@click.option("--stop", multiple=True, help="End the text before the first occurrence of this string; repeatable.")
@click.option(
    "--stop-token-id",
    "stop_token_ids",
    type=int,
    multiple=True,
    help="End the text before this token, as before EOS; repeatable.",
)
@click.option(
    "--samples",
    "-n",
    type=click.IntRange(1),
    default=1,
    help="Number of texts to generate; text i has the seed SEED + i - 1.",
)
@preset_option
@corpus_option
@vocab_option
@set_option
@json_option
def generate_command(
    checkpoint,
    prompt,
    suffix,
    max_tokens,
    seed,
    stop,
    stop_token_ids,
    samples,
    preset,
    corpus,
    vocab,
    sets,
    as_json,
    **options,
):
    """Generate text with CHECKPOINT, or with the best checkpoint of the newest run.

    \b
    mlxgpt generate --top-p 0.9 --temp 0.8
    mlxgpt generate --prompt "ROMEO:" --samples 3 --seed 1
    mlxgpt generate --prompt "def area(" --suffix "return width * height"
    mlxgpt generate model.bin --corpus shakespeare
    """
    sampling = generation.Sampling(**options)
    path = checkpoint or run.newest_checkpoint()
    model = api.load(path, preset, corpus=corpus or None, vocab=vocab, **sizes_from(sets))
    prompt = read_text(Path("-")) if prompt == "-" else prompt
    seed = secrets.randbits(32) if seed is None else seed
    for i in range(samples):
        text = api.stream(model, prompt, sampling, max_tokens, stop, seed + i, stop_token_ids, suffix)
        start = time.perf_counter()
        if as_json:
            completion = "".join(text)
            echo_json(
                {
                    "prompt": prompt,
                    **({} if suffix is None else {"suffix": suffix}),
                    "completion": completion,
                    "tokens": text.num_tokens,
                    "seed": seed + i,
                    "finish_reason": text.finish_reason,
                    "checkpoint": path,
                    "tokens_per_second": round(text.num_tokens / (time.perf_counter() - start), 1),
                }
            )
            continue
        if samples > 1:
            click.echo(f"--- sample {i + 1} of {samples}, seed {seed + i}", err=True)
        click.echo(prompt, nl=False)
        for piece in text:
            click.echo(piece, nl=False)
            if sys.stdout:  # None if the shell has closed it
                sys.stdout.flush()
        click.echo(suffix or "")
        rate = text.num_tokens / (time.perf_counter() - start)
        click.echo(f"[{path}: {text.num_tokens} tokens at {rate:.0f}/s, seed {seed + i}]", err=True)


def _biases(values: tuple[str, ...]) -> dict[int, float]:
    """Parses the values of --logit-bias."""
    biases = {}
    for text in values:
        id, _, value = text.partition("=")
        try:
            token, bias = int(id), float(value)
        except ValueError:
            example = "give a token id and a number, such as --logit-bias 5=-100"
            raise UserError(f"--logit-bias {text!r} is not ID=VALUE; {example}") from None
        if token in biases:
            raise UserError(f"--logit-bias {token} is given twice; give it once")
        biases[token] = bias
    return biases
