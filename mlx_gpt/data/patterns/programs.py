"""The corpora of generated programs: `code-patterns:N`, `code-patterns-python:N` and `code-patterns-rust:N`.

Each of the N documents is a program in Python or in Rust with one to three patterns (plans.py), each with code and
tests that pass. Document i is a function of its language and of i, and the same on every platform. A corpus of N
documents is therefore the beginning of every larger one. `code-patterns` has both languages in turns, Python first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from string import Template

from mlx_gpt.data.patterns import python, rust
from mlx_gpt.data.patterns.plans import PLANS
from mlx_gpt.data.patterns.words import Draw, Names
from mlx_gpt.errors import UserError

# Corpus -> the languages of its documents, in turns.
LANGUAGES = {
    "code-patterns": ("python", "rust"),
    "code-patterns-python": ("python",),
    "code-patterns-rust": ("rust",),
}
TEMPLATES = {"python": python, "rust": rust}
MAX_PROGRAMS = 1_000_000
MEAN_BYTES = 1200  # average size of a program
MAX_PATTERNS = 3  # of a program


@dataclass(frozen=True)
class Programs:
    """Generated programs.

    Attributes:
        name: a key of LANGUAGES.
        count: the number of programs.
    """

    name: str
    count: int

    @classmethod
    def parse(cls, spec: str) -> "Programs":
        """Returns the programs of a corpus name such as `code-patterns:500`. Raises UserError for an invalid number."""
        name, _, tail = spec.partition(":")
        if not (tail.isascii() and tail.isdigit()) or not 1 <= int(tail[:8]) <= MAX_PROGRAMS:
            raise UserError(
                f"corpus {spec}: give the number of documents, from 1 to {MAX_PROGRAMS:,}, as in {name}:500; a weight "
                f"may follow it, as in {name}:500:2"
            )
        return cls(name, int(tail))

    @property
    def num_bytes(self) -> int:
        """The approximate size of the text in bytes."""
        return self.count * MEAN_BYTES

    def note(self) -> str:
        """Returns a message for the user that says what the corpus is."""
        languages = " and ".join(language.capitalize() for language in LANGUAGES[self.name])
        return f"{self.name}:{self.count}: {self.count:,} generated programs in {languages}"

    def texts(self) -> Iterator[list[str]]:
        """Yields each program as a list of one string."""
        languages = LANGUAGES[self.name]
        for i in range(self.count):
            yield [program(languages[i % len(languages)], i // len(languages))]


def program(language: str, index: int) -> str:
    """Returns program `index` of a language, a key of TEMPLATES."""
    draw = Draw(f"code-patterns/{language}/{index}")
    names, templates, parts = Names(draw), TEMPLATES[language], []
    patterns = draw.several(list(PLANS), draw.between(1, MAX_PATTERNS))
    for pattern in patterns:
        plan = PLANS[pattern](draw, names)
        plan["number"] = templates.NUMBERS[plan.get("kind", "integer")]
        code, tests = (Template(table[pattern]).substitute(plan).strip() for table in (templates.CODE, templates.TESTS))
        parts.append((f"{pattern}_{names.noun()}", code, tests))
    subject = ", ".join(PLANS[pattern].__doc__.rstrip(".").lower() for pattern in patterns)
    return templates.program(f"{subject[0].upper()}{subject[1:]}.", parts, draw.below(2) == 0)
