"""The `mlxgpt` command: the table of its commands, and its exit codes. Every error is one line."""

import errno
import os
import signal
import sys
import warnings

import click

from mlx_gpt.cli.lazy_group import LazyGroup
from mlx_gpt.errors import OutOfRoom, UserError
from mlx_gpt.version import __version__

# Command -> its module, and its line in the help.
COMMANDS = {
    "train": ("mlx_gpt.cli.train", "Train a model; by default model-l on Python's help topics."),
    "generate": (
        "mlx_gpt.cli.generate",
        "Generate text with CHECKPOINT, or with the best checkpoint of the newest run.",
    ),
    "serve": (
        "mlx_gpt.cli.serve",
        "Serve CHECKPOINT, or the best checkpoint of the newest run, to OpenAI's clients and to a browser.",
    ),
    "eval": ("mlx_gpt.cli.evaluate", "Loss, perplexity and bits per byte over a whole split."),
    "compare": ("mlx_gpt.cli.compare", "Settings, losses, tokens to a loss, and speed of runs, side by side."),
    "convert": (
        "mlx_gpt.cli.convert",
        "Translate a checkpoint between safetensors and RGPT0001, RGPT0002, RGPT0003.",
    ),
    "export": (
        "mlx_gpt.cli.export",
        "Write CHECKPOINT into DIR as transformers or mlx-lm load it, with code, tokenizer and card.",
    ),
    "push": (
        "mlx_gpt.cli.export",
        "Send an exported folder to the Hugging Face hub; without --yes, list what would be sent.",
    ),
    "inspect": (
        "mlx_gpt.cli.convert",
        "Header, shape, tensors and checks of a checkpoint, without building the model.",
    ),
    "corpus": ("mlx_gpt.cli.corpus", "Named corpora."),
    "tokenizer": (
        "mlx_gpt.cli.tokenizer",
        "Byte-pair vocabularies: ours and the libraries' tokenizer.json, and randyGPT's vocab.json.",
    ),
    "doctor": (
        "mlx_gpt.cli.doctor",
        "Device, versions, BLAS, memory limits, and the measured rate of a matrix product.",
    ),
    "bench": ("mlx_gpt.cli.bench", "Measure training and generation on this machine."),
}

# Words in MLX's errors when memory is exhausted.
MEMORY_WORDS = ("malloc", "allocate", "resource limit", "insufficient memory", "out of memory")


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MLXGPT", "show_default": True},
)
@click.version_option(__version__, prog_name="mlxgpt")
def cli():
    """Train a GPT from scratch, and generate text with it.

    \b
    mlxgpt train --preset model-l --corpus shakespeare
    mlxgpt generate --top-p 0.9 --temp 0.8

    Every option can also be set by an environment variable, as MLXGPT_TRAIN_PRESET. Exit codes: 1 a fault of mlxgpt,
    2 usage, 3 bad file, 4 a checkpoint that does not fit, 5 diverged, 6 out of disk or memory, 130, 143 and 129
    interrupted, 141 nobody reads the output.
    """


def main() -> None:
    """Runs the command line, and ends the process with its exit code. Errors are one line on stderr."""
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
    try:
        sys.exit(cli(standalone_mode=False))
    except UserError as error:
        _fail(error)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mlxgpt"
        _fail(UserError(f"{error.format_message().rstrip('.')}; see {command} --help"))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output has gone. The interpreter would try to flush it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        kind = OutOfRoom if error.errno == errno.ENOSPC else UserError
        _fail(kind(f"{name}{error.strerror or error}"))
    except MemoryError:
        _fail(_out_of_memory())
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in MEMORY_WORDS):
            raise
        _fail(_out_of_memory())


def _out_of_memory() -> OutOfRoom:
    return OutOfRoom("out of memory; lower --batch and raise --accum by as much, or take a smaller --preset")


def _fail(error: UserError) -> None:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)
