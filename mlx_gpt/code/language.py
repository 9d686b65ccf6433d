"""The protocol of programming languages. The table of languages is in languages.py."""

from dataclasses import dataclass, field
from typing import Protocol

from mlx_gpt.rl.sandbox import Limits, Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What is known of a program without executing it.

    Attributes:
        parses: Whether the language's parser accepts it.
        compiles: Whether the language's compiler accepts it. None if there is no compiler on this machine.
        error: The first error, one line; "" if there is none.
        warnings: Number of warnings of the compiler.
        lines: Number of lines that are neither blank nor a comment.
        functions: Number of functions and methods.
        complexity: Cyclomatic complexity: 1 + the number of branches and loops.
        nesting: Depth of the deepest nested block.
        repetition: Share of its lines of code that occur before in the program, from 0 to 1.
        unused: Number of definitions and imports that the program does not use.
        unreachable: Number of statements that cannot be reached, such as those after a return.
        coverage: Share of the variants of the program's own enums that its matches name, from 0 to 1. None without such
            a match. A pattern that handles the rest, such as `_`, names no variant.
        defined: Names of the functions and types that it defines. A function whose body does nothing does not count.
    """

    parses: bool
    compiles: bool | None
    error: str
    warnings: int = 0
    lines: int = 0
    functions: int = 0
    complexity: int = 0
    nesting: int = 0
    repetition: float = 0.0
    unused: int = 0
    unreachable: int = 0
    coverage: float | None = None
    defined: frozenset[str] = field(default_factory=frozenset)


class Language(Protocol):
    """A programming language.

    Attributes:
        name: The name in options and files, such as "python".
        suffixes: File names of programs end with one of these, such as (".py",).
        comment: The beginning of a comment that ends with its line.
        stops: Texts that follow the end of a definition. A model that writes one of them has completed its program.
    """

    name: str
    suffixes: tuple[str, ...]
    comment: str
    stops: tuple[str, ...]

    def missing(self) -> str | None:
        """The reason why programs cannot be compiled on this machine, and what to install. None if they can."""
        ...

    def check(self, text: str) -> Findings:
        """Parses and compiles a program without executing any of it. Text that is no program is no error."""
        ...

    def check_all(self, texts: list[str]) -> list[Findings]:
        """The findings of several programs, which may be checked side by side. Equal to check() of each."""
        ...

    def complete(self, prompt: str, written: str) -> str:
        """Returns the prompt and the part of `written` that belongs to the definition which the prompt begins.

        What a model writes after the end of this definition, such as further functions, is left out. If the definition
        does not end, all of `written` belongs to it.
        """
        ...

    def run(self, program: str, tests: str, limits: Limits) -> Outcome:
        """Executes a program followed by tests in the sandbox. The tests pass if the outcome is "passed"."""
        ...
