"""The settings of an evaluation of written code."""

from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.code.problems import Problem, read_problems
from mlx_gpt.code.prompts import PROMPTS, SETS, problem_set, prompts
from mlx_gpt.errors import UserError

MAX_SAMPLES, MAX_TOKENS = 10_000, 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is evaluated, and how the samples are drawn.

    Args:
        language: The language of the problems: "python", "rust", or "all" for the prompts of both.
        problems: The path of a file of problems, or the name of a set of the package, such as "rust-basics". None takes
            the prompts of the package.
        limit: Number of problems, from the first one on. None takes all.
        samples: Number of samples for each problem, n.
        temperature: The logits are divided by this, 0 to 100. 0 takes the most likely token.
        top_k: Draw from the k most likely tokens; 0 keeps all.
        max_tokens: Maximum number of tokens of a sample.
        seed: Seed of the draws. A sample depends on the seed, its prompt and its number among the samples.
        execute: Whether the programs are executed with the tests of their problems.
        ks: The values of k for which pass@k is estimated.

    Raises:
        UserError: A value is not allowed.
    """

    language: str = "all"
    problems: str | None = None
    limit: int | None = None
    samples: int = 16
    temperature: float = 0.8
    top_k: int = 50
    max_tokens: int = 256
    seed: int = 0
    execute: bool = False
    ks: tuple[int, ...] = (1, 10)

    def __post_init__(self):
        if self.language not in (*PROMPTS, "all"):
            raise UserError(f"language={self.language!r} is not allowed; choose from {', '.join(PROMPTS)}, all")
        for name, most in (("samples", MAX_SAMPLES), ("max_tokens", MAX_TOKENS), ("limit", 1 << 31)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UserError(f"{name}={value} is not allowed; give a whole number from 1 to {most:,}")
        if not all(1 <= k <= MAX_SAMPLES for k in self.ks):
            raise UserError(f"ks={self.ks} is not allowed; give whole numbers from 1 to {MAX_SAMPLES:,}")

    def open_problems(self) -> list[Problem]:
        """Returns the problems.

        Raises:
            UserError: There is no such file, or its language is not given.
            BadFile: The file is not valid.
        """
        if self.problems is None:
            found = prompts(self.language)
        elif self.problems in SETS:
            if self.language not in (SETS[self.problems], "all"):
                raise UserError(f"problems {self.problems} are in {SETS[self.problems]}, not in {self.language}")
            found = problem_set(self.problems)
        elif self.language == "all":
            raise UserError(f"problems {self.problems}: a file has problems of one language; name it with --language")
        else:
            found = read_problems(Path(self.problems), self.language)
        return found[: self.limit]
