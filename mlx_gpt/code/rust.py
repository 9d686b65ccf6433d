"""Rust: findings from the diagnostics of rustc, which runs in the sandbox, and from the program's tokens.

A program is compiled as a library without dependencies, so no build script and no procedural macro runs. Programs that
would make the compiler read files or the environment are not compiled.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from mlx_gpt.code.language import Findings
from mlx_gpt.code.lines import code_lines, repetition, too_long
from mlx_gpt.code.rust_measures import measured, reading_macro
from mlx_gpt.code.rust_tokens import CLOSING, OPENING, Token, is_balanced, tokens_of, without_comments
from mlx_gpt.errors import UserError
from mlx_gpt.rl.sandbox import Limits, Outcome, execute, side_by_side

EDITION = "2021"
COMPILING = Limits(seconds=20, memory_mb=2048, file_mb=256, num_processes=128, output_bytes=1 << 20)
CHECK = ["--crate-type=lib", "--emit=metadata", "--error-format=json", "-o", "program.rmeta", "program.rs"]
TEST = ["--test", "-C", "debuginfo=0", "-o", "program", "program.rs"]
MISSING = "rustc was not found in PATH and in ~/.cargo/bin; install Rust with rustup, then run: rustup default stable"
# A module that is configured out is parsed and nothing else.
PARSED_ONLY = "#[cfg(any())]\nmod program {{\n{}\n}}\n"


@functools.cache
def toolchain() -> Path | None:
    """Returns the folder of the Rust toolchain, or None if there is none. ~/.cargo/bin/rustc only refers to it."""
    found = shutil.which("rustc") or shutil.which("rustc", path=os.path.expanduser("~/.cargo/bin"))
    if not found:
        return None
    done = subprocess.run([found, "--print", "sysroot"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    folder = Path(done.stdout.strip()).resolve()
    return folder if done.returncode == 0 and (folder / "bin/rustc").is_file() else None


def _rustc(arguments: list[str], text: str, **options) -> Outcome:
    """Runs the compiler on a program in the sandbox."""
    folder = str(toolchain())
    command = [f"{folder}/bin/rustc", f"--edition={EDITION}", f"--sysroot={folder}", *arguments]
    return execute(command, {"program.rs": text}, COMPILING, readable=[folder], **options)


class Rust:
    """Rust of the stable compiler. See Language for the methods.

    Without a compiler, a program parses if its brackets are balanced, and findings of the compiler are 0.
    """

    name = "rust"
    suffixes = (".rs",)
    comment = "//"
    stops = ()

    def missing(self) -> str | None:
        """The reason why programs cannot be compiled, None if they can."""
        return None if toolchain() else MISSING

    def check(self, text: str) -> Findings:
        """Parses and compiles a program as a library. See Language."""
        if reason := too_long(text):
            return Findings(parses=False, compiles=False if toolchain() else None, error=reason)
        tokens = tokens_of(text)
        lines = code_lines(without_comments(text), self.comment)
        found = {"lines": len(lines), "repetition": repetition(lines), **measured(tokens)}
        if not toolchain():
            parses = is_balanced(tokens)
            return Findings(parses=parses, compiles=None, error="" if parses else "unbalanced brackets", **found)
        if macro := reading_macro(tokens):
            error = f"{macro} reads what is not part of the program; programs with it are not compiled"
            return Findings(parses=_parses(text, tokens), compiles=False, error=error, **found)
        outcome = _rustc(CHECK, text)
        diagnostics = _diagnostics(outcome.output)
        return Findings(
            parses=outcome.passed or _parses(text, tokens),
            compiles=outcome.passed,
            error="" if outcome.passed else _first_error(diagnostics, outcome),
            warnings=sum(_is_warning(d) for d in diagnostics),
            unused=_count(diagnostics, "dead_code", "unused_"),
            unreachable=_count(diagnostics, "unreachable_code"),
            **found,
        )

    def check_all(self, texts: list[str]) -> list[Findings]:
        """The findings of several programs, which are compiled side by side."""
        return side_by_side(self.check, texts)

    def complete(self, prompt: str, written: str) -> str:
        """Returns the prompt and the rest of the definition that it begins. See Language.

        The definition ends with the brace that closes all braces of the prompt. If the prompt has no open brace, it
        ends with the first brace that closes all, or with a semicolon outside of brackets.
        """
        text = prompt + written
        stack: list[str] = []
        for token in tokens_of(text):
            if token.kind != "mark":
                continue
            if token.text in OPENING:
                stack.append(CLOSING[OPENING.index(token.text)])
            elif token.text in CLOSING and token.text in stack:
                while stack.pop() != token.text:  # what the program has left open
                    pass
            is_end = token.text == "}" or token.text == ";"
            if token.end > len(prompt) and is_end and not stack:
                return text[: token.end]
        return text

    def run(self, program: str, tests: str, limits: Limits) -> Outcome:
        """Compiles a program and its tests to one test binary and executes it, both in the sandbox.

        The tests are functions with `#[test]`, or a function `main` that panics if it fails. They pass only if all of
        them ran to their end: a program that exits before with code 0 has failed. The compiler has its own limits,
        COMPILING.

        Raises:
            UserError: There is no compiler.
        """
        if reason := self.missing():
            raise UserError(f"Rust programs cannot be executed: {reason}")
        marker = f"zzzz_{secrets.token_hex(16)}"  # the name of the last test: they run in the order of their names
        text = f"{program}\n\n{tests}\n#[test]\nfn {marker}() {{}}\n"
        if "#[test]" not in tests:
            text += "#[test]\nfn runs_main() -> impl ::std::process::Termination {\n    main()\n}\n"
        if macro := reading_macro(tokens_of(text)):
            return Outcome(kind="failed", exit_code=1, output=f"{macro} is not allowed in a program", error="Syntax")
        built = _rustc(TEST, text, keep=["program"])
        if "program" not in built.files:
            error = "Syntax" if built.kind == "failed" else built.error
            return replace(built, error=error, files={})
        outcome = execute(["./program", "--test-threads=1"], built.files, limits)
        shown = replace(outcome, output=outcome.output.replace(marker, "end_of_tests"))
        if outcome.passed and f"test {marker} ... ok" not in outcome.output:
            return replace(shown, kind="failed", error="Other")
        return shown


# -- diagnostics of rustc ---------------------------------------------------------------------------------------------


def _parses(text: str, tokens: list[Token]) -> bool:
    """Whether the compiler's parser accepts a program. Nothing else of it is compiled."""
    return is_balanced(tokens) and _rustc(CHECK, PARSED_ONLY.format(text)).passed


def _diagnostics(output: str) -> list[dict]:
    """Returns the diagnostics in the output of rustc. Lines that are no JSON are left out."""
    found = []
    for line in output.splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [d for d in found if isinstance(d, dict) and "level" in d]


def _is_warning(diagnostic: dict) -> bool:
    """Whether a diagnostic is a warning. The last one only counts the others, and has no place in the program."""
    return diagnostic["level"] == "warning" and bool(diagnostic["spans"])


def _first_error(diagnostics: list[dict], outcome: Outcome) -> str:
    """Returns the first error in one line."""
    for diagnostic in diagnostics:
        if diagnostic["level"].startswith("error") and not diagnostic["message"].startswith("aborting due to"):
            code = f" ({diagnostic['code']['code']})" if diagnostic["code"] else ""
            line = next((f"line {span['line_start']}: " for span in diagnostic["spans"] if span["is_primary"]), "")
            return " ".join(f"{line}{diagnostic['message']}{code}".split())
    return f"rustc: {outcome.kind} with exit code {outcome.exit_code}"


def _count(diagnostics: list[dict], *codes: str) -> int:
    """Returns the number of places that the warnings name whose code begins with one of some codes."""
    chosen = [d for d in diagnostics if d["code"] and d["code"]["code"].startswith(codes)]
    return sum(span["is_primary"] for d in chosen for span in d["spans"])
