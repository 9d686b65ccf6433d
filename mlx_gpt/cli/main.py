"""The `mlxgpt` command: the table of its subcommands, and the conversion of exceptions to messages and exit codes."""

import errno
import os
import signal
import sys
import warnings

import click

from mlx_gpt.cli.lazy_group import LazyGroup, PipeClosed
from mlx_gpt.errors import GroupChanged, InternalError, OutOfRoom, UserError, from_device
from mlx_gpt.version import __version__

# Command -> its module, and its line in the help, which repeats the first sentence of the command's docstring.
COMMANDS = {
    "train": ("mlx_gpt.cli.train", "Train a model; by default model-l on Python's help topics."),
    "generate": (
        "mlx_gpt.cli.generate",
        "Generate text with CHECKPOINT, or with the best checkpoint of the newest run.",
    ),
    "serve": (
        "mlx_gpt.cli.serve",
        "Serve CHECKPOINT, or the best checkpoint of the newest run, over an OpenAI-compatible API with a web page.",
    ),
    "eval": (
        "mlx_gpt.cli.evaluate",
        "Measure loss, perplexity and bits per byte over a whole split, or judge generated text.",
    ),
    "eval-code": (
        "mlx_gpt.cli.eval_code",
        "Measure how well the code that CHECKPOINT writes parses, compiles and does what it should.",
    ),
    "compare": (
        "mlx_gpt.cli.compare",
        "Compare runs: settings that differ, losses, tokens and seconds to reach a loss, and speed.",
    ),
    "runs": ("mlx_gpt.cli.runs", "List runs, or delete those that are no longer needed."),
    "watch": ("mlx_gpt.cli.watch", "Show runs on a web page, while they train and afterwards."),
    "rl": ("mlx_gpt.cli.rl", "Train CHECKPOINT with rewards of the texts that it writes."),
    "pipeline": ("mlx_gpt.cli.pipeline", "Run train, rl, eval and eval-code in a row, as FILE describes them."),
    "convert": (
        "mlx_gpt.cli.convert",
        "Convert a checkpoint between safetensors, RGPT0001, RGPT0002, RGPT0003, GGUF and nanochat.",
    ),
    "export": (
        "mlx_gpt.cli.export",
        "Export CHECKPOINT for transformers, mlx-lm or llama.cpp; without a destination, list what is possible.",
    ),
    "push": (
        "mlx_gpt.cli.export",
        "Send an exported folder to the Hugging Face hub; without --yes, list what would be sent.",
    ),
    "inspect": (
        "mlx_gpt.cli.convert",
        "Print a checkpoint's header, sizes, tensors and passed checks, without building the model.",
    ),
    "corpus": ("mlx_gpt.cli.corpus", "List the named corpora, describe a text, or import token ids of other programs."),
    "tokenizer": (
        "mlx_gpt.cli.tokenizer",
        "Train, use, inspect and convert byte-pair vocabularies.",
    ),
    "doctor": (
        "mlx_gpt.cli.doctor",
        "Print device, versions, BLAS, memory limits, and the measured speed of a matrix product.",
    ),
    "bench": ("mlx_gpt.cli.bench", "Measure training and generation on this machine."),
}

# The end of the message of an InternalError.
REPORT = "; this is a defect of mlxgpt: report this line, the command, and the output of mlxgpt doctor"


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

    Every option can also be set by an environment variable with its longest name, such as MLXGPT_TRAIN_PRESET for
    train --preset.

    Exit codes: 1 internal error, 2 wrong usage, 3 bad file, 4 checkpoint does not match the request or run folder is in
    use, 5 training diverged, 6 out of disk space or memory, 7 work on the GPU took too long, 8 another process of the
    run was lost, 130, 143 or 129 interrupted by SIGINT, SIGTERM or SIGHUP, 141 output closed by its reader.
    """


def main() -> None:
    """Runs the command line, and ends the process with an exit code. Prints each error as one line on stderr."""
    warnings.showwarning = lambda message, *_: click.echo(f"warning: {message}", err=True)
    try:
        sys.exit(cli(standalone_mode=False))
    except GroupChanged as change:
        _restart(change)
    except UserError as error:
        _fail(error)
    except InternalError as error:
        click.echo(f"internal error: {error}{REPORT}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mlxgpt"
        _fail(UserError(f"{error.format_message().rstrip('.')}; see {command} --help"))
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except (PipeClosed, BrokenPipeError):
        # The reader of stdout has closed the pipe. The interpreter flushes stdout when it exits, which would fail with
        # another message. Therefore stdout is redirected to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        kind = OutOfRoom if error.errno == errno.ENOSPC else UserError
        _fail(kind(f"{name}{error.strerror or error}"))
    except (MemoryError, RuntimeError) as error:
        explained = from_device(error)
        if explained is None:
            raise
        _fail(explained)


def _restart(change: GroupChanged) -> None:
    """Executes the command of this process again, in the same process, in a group of other processes."""
    if os.environ.get("MLX_RANK", "0") == "0":
        click.echo(str(change), err=True)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | change.environment)


def _fail(error: UserError) -> None:
    rank = os.environ.get("MLX_RANK", "0")  # of the processes that mlx.launch has started
    click.echo(f"error{'' if rank == '0' else f' on rank {rank}'}: {error}", err=True)
    sys.exit(error.exit_code)
