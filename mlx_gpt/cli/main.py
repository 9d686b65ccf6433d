"""The `mlxgpt` command: its subcommands, and every error as one line and an exit code."""

import errno
import os
import signal
import sys
import warnings

import click

from mlx_gpt import __version__
from mlx_gpt.cli.bench import bench
from mlx_gpt.cli.compare import compare
from mlx_gpt.cli.convert import convert, inspect
from mlx_gpt.cli.corpus import corpus
from mlx_gpt.cli.doctor import doctor
from mlx_gpt.cli.evaluate import evaluate
from mlx_gpt.cli.export import export, push
from mlx_gpt.cli.generate import generate
from mlx_gpt.cli.serve import serve
from mlx_gpt.cli.tokenizer import tokenizer
from mlx_gpt.cli.train import train
from mlx_gpt.errors import OutOfRoom, UserError

# What MLX says, on its devices, when memory is gone.
MEMORY_WORDS = ("malloc", "allocate", "resource limit", "insufficient memory", "out of memory")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MLXGPT", "show_default": True}
)
@click.version_option(__version__, prog_name="mlxgpt")
def cli():
    """Train a GPT from scratch, and let it write.

    \b
    mlxgpt train --preset model-l --corpus shakespeare
    mlxgpt generate --top-p 0.9 --temp 0.8

    Every option can also be set by an environment variable, as MLXGPT_TRAIN_PRESET. Exit codes: 1 a fault of ours, 2
    usage, 3 bad file, 4 a checkpoint that does not fit, 5 diverged, 6 out of disk or memory, 130, 143 and 129
    interrupted, 141 nobody reads the output.
    """


for command in (
    train,
    generate,
    serve,
    evaluate,
    compare,
    convert,
    export,
    push,
    inspect,
    corpus,
    tokenizer,
    doctor,
    bench,
):
    cli.add_command(command)


def main() -> None:
    """Runs the command; a user's mistake is one line on stderr."""
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
        # Whoever read our output has gone; the interpreter must not try to flush it again.
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
