"""A click group that imports the module of a command only when the command is invoked."""

from collections import Counter
from collections.abc import Mapping
from importlib import import_module

import click


class PipeClosed(Exception):
    """The reader of the output has closed the pipe. Replaces BrokenPipeError; see LazyGroup.invoke."""


class LazyGroup(click.Group):
    """A click group that is built from a table of commands, so that `--help` imports none of them.

    The command `x-y` is the function `x_y_command` of its module. Until it is invoked, the group has a placeholder with
    the name of the command and its one-line help. click reads the placeholders for the help, for shell completion, and
    for suggestions after a misspelled name.
    """

    def __init__(self, *args, table: Mapping[str, tuple[str, str]], **kwargs):
        """Makes the placeholders.

        Args:
            table: Maps the name of each command to its module and its one-line help.
            *args, **kwargs: Arguments of click.Group.
        """
        super().__init__(*args, **kwargs)
        self.table = table
        self.commands = {name: click.Command(name, help=line) for name, (_, line) in table.items()}

    def resolve_command(self, ctx: click.Context, args: list[str]):
        """Resolves the name of a command, and imports the command in place of its placeholder."""
        name, command, rest = super().resolve_command(ctx, args)
        if command:
            command = self.load(name)
            _refuse_repeated_options(ctx, name, command, rest)
        return name, command, rest

    def invoke(self, ctx: click.Context):
        """Runs the command.

        click handles BrokenPipeError itself and ends the process with exit code 1, even with standalone_mode=False.
        PipeClosed is not known to click and therefore reaches main(), which chooses the exit code.

        Raises:
            PipeClosed: The reader of the output has closed the pipe.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def load(self, name: str) -> click.Command:
        """Imports the command `name` and returns it."""
        return getattr(import_module(self.table[name][0]), f"{name.replace('-', '_')}_command")


def _refuse_repeated_options(ctx: click.Context, name: str, command: click.Command, args: list[str]) -> None:
    """Raises click.UsageError if an option that takes one value is given twice. click itself would take the last."""
    context = click.Context(command, info_name=name, parent=ctx, resilient_parsing=True)
    try:
        _, _, given = command.make_parser(context).parse_args(list(args))
    except click.UsageError:  # click reports it when it parses the arguments itself
        return
    for option, count in Counter(given).items():
        if count > 1 and isinstance(option, click.Option) and not option.multiple:
            raise click.UsageError(f"{option.opts[-1]} is given twice; give it once", context)
