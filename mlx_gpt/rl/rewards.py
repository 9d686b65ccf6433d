"""Rewards of texts that a model has written.

A reward is a function of a prompt and the text that follows it. It returns named parts, whose sum is the reward:

    def reward(prompt: str, text: str) -> dict[str, float]:
        return {"short": 1.0 if len(text) < 80 else 0.0}
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from mlx_gpt.code.languages import language_of
from mlx_gpt.code.problems import Problem
from mlx_gpt.config.schema import RLConfig
from mlx_gpt.config.table import lookup
from mlx_gpt.errors import UserError
from mlx_gpt.rl.sandbox import Limits

Parts = dict[str, float]  # the parts of a reward by name


class Reward(Protocol):
    """Rewards texts. See REWARDS for those that have a name."""

    def __init__(self, config: RLConfig): ...

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Parts]:
        """Returns the parts of the reward of each text, which follows the prompt of its problem.

        A result depends on its own problem and text only. A part that only some texts have is 0 for the others.
        """
        ...


class Compiles:
    """Rewards programs that compile and define what the prompt asks for. Nothing is executed.

    `defines` is 0.8 for a program that compiles and whose definition of the name in the prompt does something.
    `compiles` is 0.2 for such a program if it compiles without warnings. `repetition` is minus the share of its lines
    that repeat earlier ones, times 0.5. A text that is empty, or that repeats the prompt, defines nothing.
    """

    def __init__(self, config: RLConfig):
        self.language = language_of(config.language)
        if reason := self.language.missing():
            raise UserError(f"rl.language={config.language}: {reason}")

    def programs(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[str]:
        """The prompt of each problem, and the part of its text that completes it."""
        return [self.language.complete(p.prompt, text) for p, text in zip(problems, texts, strict=True)]

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Parts]:
        parts = []
        findings = self.language.check_all(self.programs(problems, texts))
        for problem, found in zip(problems, findings, strict=True):
            defines = bool(found.compiles) and problem.entry_point in found.defined
            clean = defines and not found.warnings
            parts.append({"defines": 0.8 * defines, "compiles": 0.2 * clean, "repetition": -0.5 * found.repetition})
        return parts


class Passes(Compiles):
    """Rewards programs whose tests pass, which are executed in a sandbox (rl/sandbox.py).

    `passes` is 1 for a program that passes the tests of its problem. The parts of Compiles count half.
    """

    def __init__(self, config: RLConfig):
        super().__init__(config)
        if not config.execute:
            raise UserError("rl.reward=tests executes what the model writes, in a sandbox; allow it with --execute")

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Parts]:
        parts = [{name: 0.5 * x for name, x in found.items()} for found in super().__call__(problems, texts)]
        for problem, program, found in zip(problems, self.programs(problems, texts), parts, strict=True):
            passed = found["defines"] > 0 and self.language.run(program, problem.tests, Limits()).kind == "passed"
            found["passes"] = float(passed)
        return parts


class Plugin:
    """Rewards texts with the function `reward` of a Python file, which is executed without a sandbox."""

    def __init__(self, path: Path):
        self.path, self.function = path, _function(path)

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Parts]:
        return [self._parts(problem.prompt, text) for problem, text in zip(problems, texts, strict=True)]

    def _parts(self, prompt: str, text: str) -> Parts:
        try:
            found = self.function(prompt, text)
        except (Exception, SystemExit) as error:  # it is the user's code
            raise UserError(
                f"{self.path}: reward() failed with {type(error).__name__}: {str(error)[:200]}; its prompt was "
                f"{prompt[:60]!r} and its text {text[:60]!r}"
            ) from error
        ok = isinstance(found, dict) and found and all(isinstance(name, str) for name in found)
        if not ok or not all(isinstance(x, int | float) and math.isfinite(x) for x in found.values()):
            shown = str(found)[:60]
            raise UserError(f"{self.path}: reward() returned {shown!r}; return finite numbers by name, as a dict")
        return {name: float(x) for name, x in found.items()}


REWARDS: dict[str, type[Reward]] = {"compiles": Compiles, "tests": Passes}


def make_reward(config: RLConfig) -> Reward:
    """Makes the reward that `rl.reward` names: one of REWARDS, or a Python file.

    Raises:
        UserError: There is no such reward or file, or the language cannot be checked on this machine.
    """
    if config.reward.endswith(".py"):
        return Plugin(Path(config.reward))
    return lookup(REWARDS, config.reward, "reward", prefix="rl.reward=")(config)


def _function(path: Path) -> Callable[[str, str], Parts]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; rl.reward names a Python file with a function reward(prompt, text)")
    spec = importlib.util.spec_from_file_location(f"mlxgpt_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise UserError(f"{path}: cannot be imported: {type(error).__name__}: {str(error)[:200]}") from error
    function = getattr(module, "reward", None)
    if not callable(function):
        raise UserError(f"{path}: has no function reward(prompt, text)")
    return function
