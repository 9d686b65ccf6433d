"""A click group whose commands are imported when they are invoked."""

from collections.abc import Mapping
from importlib import import_module

import click


class PipeClosed(Exception):
    """The reader of the output has closed it."""


class LazyGroup(click.Group):
    """A click group that is built from a table, so that its help imports no command.

    The command `x` is the function `x_command` of its module. The group holds a placeholder for each command, with its
    name and a line of help. click uses the placeholders for help, shell completion and suggestions of names.
    """

    def __init__(self, *args, table: Mapping[str, tuple[str, str]], **kwargs):
        """`table`: command name -> (module, the command's short help)."""
        super().__init__(*args, **kwargs)
        self.table = table
        self.commands = {name: click.Command(name, help=line) for name, (_, line) in table.items()}

    def resolve_command(self, ctx: click.Context, args: list[str]):
        name, command, rest = super().resolve_command(ctx, args)
        return name, command and self.load(name), rest

    def invoke(self, ctx: click.Context):
        """Runs the command. click would end the process with code 1 where a pipe is closed; main() decides that."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosed from error

    def load(self, name: str) -> click.Command:
        """Imports a command."""
        return getattr(import_module(self.table[name][0]), f"{name}_command")
