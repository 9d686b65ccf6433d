"""Laws of Python as a language of programs."""

import subprocess
import sys
import threading
import warnings

import pytest

from mlx_gpt.code.languages import language_of
from mlx_gpt.code.lines import MAX_CHARACTERS
from mlx_gpt.rl.sandbox import Limits

python = language_of("python")

FINDINGS = {
    "": {"functions": 0, "complexity": 1, "nesting": 0, "lines": 0, "unused": 0, "unreachable": 0, "coverage": None},
    "# a comment\n\nx = 1  # another\n": {"lines": 1, "nesting": 0},
    "class A:\n    def f(self): return 1\n    async def g(self): return 2\ndef h():\n    def i(): return 3\n    i()": {
        "functions": 4, "defined": {"A", "f", "g", "h", "i"}, "nesting": 2},
    "def f(x):\n    if x:\n        return 1\n    elif x > 1:\n        return 2\n    else:\n        return 3\n": {
        "complexity": 3, "nesting": 2},
    "for x in y:\n    while x:\n        x = 1 if x else [z for z in x if z]\n": {"complexity": 6, "nesting": 2},
    "try:\n    f()\nexcept OSError:\n    g()\nfinally:\n    h()\n": {"complexity": 2, "nesting": 1},
    "x = 1\ny = 2\nx = 1\nx = 1\n": {"repetition": 0.5},
    ")\n)\n": {"repetition": 0.0, "lines": 2},
    # -- unused
    "import os\nimport sys as system\nfrom a import b, c\nprint(b, os.name)\n": {"unused": 2},
    "from __future__ import annotations\nfrom a import *\nimport a.b\na.b.c()\n": {"unused": 0},
    "from a import b\n__all__ = ['b']\n": {"unused": 0},
    "def _f(): return _f()\ndef _g(): return 1\ndef h(): return _g()\n": {"unused": 1},
    "def f():\n    def g(): return 1\n    class H: pass\n    return 2\n": {"unused": 2},
    "class A:\n    def _f(self): return 1\n": {"unused": 0},
    # -- unreachable
    "def f():\n    return 1\n    print(2)\n    print(3)\n": {"unreachable": 2},
    "for x in y:\n    if x:\n        break\n        x = 1\n    continue\n    x = 2\n": {"unreachable": 2},
    "def f():\n    raise ValueError\nf()\n": {"unreachable": 0},
    # -- functions that do nothing
    "def f(): pass\ndef g():\n    '''Does nothing.'''\ndef h(): ...\ndef i(): return None\ndef j(): return\n": {
        "defined": set(), "functions": 5},
    "def f(): raise NotImplementedError('later')\ndef g():\n    '''Text.'''\n    return 1\nclass C: pass\n": {
        "defined": {"g", "C"}},
}  # fmt: skip

ENUM = "from enum import Enum\nclass E(Enum):\n    A = 1\n    B = 2\n    C = 3\n    _D = 4\n\ndef f(x):\n    match x:\n"
COVERAGE = {
    "        case E.A: return 1\n": 1 / 3,
    "        case E.A | E.B: return 1\n        case E.C as y: return y\n": 1.0,
    "        case E.A: return 1\n        case _: return 2\n": 1 / 3,
    "        case E.A if x: return 1\n        case E.B: return 2\n": 1 / 3,
    "        case 1: return 1\n": None,
    "        case F.A: return 1\n": None,
    "        case E.Z: return 1\n": None,
}

DEEP = ("MemoryError: ", "RecursionError: ")  # which of them depends on the version of Python
BAD = {  # -> whether it parses, and the beginning of the error
    "def f(:": (False, "SyntaxError: line 1: invalid syntax"),
    "if 1:\nx = 1": (False, "IndentationError: line 2: "),
    "a\0b": (False, "SyntaxError: "),
    "'\ud800'": (False, "UnicodeEncodeError: "),
    "1" * 5000: (False, "SyntaxError: "),
    "(" * 30_000: (False, "SyntaxError: line 1: too many nested parentheses"),
    "-" * 50_000 + "1": (False, DEEP),
    "a" + ".b" * 40_000: (False, DEEP),
    "1" + "+x" * 40_000: (False, DEEP),
    "if a: pass\n" + "elif a: pass\n" * 7000: (False, DEEP),
    "[" * 50 + "x " + "for x in y]" * 50: (True, "RecursionError: more than 10 comprehensions"),
    "return 1": (True, "SyntaxError: line 1: 'return' outside function"),
    "x = 1\ndef f():\n    y = 1\n    global y": (True, "SyntaxError: line 4: "),
    "x" * (MAX_CHARACTERS + 1): (False, f"{MAX_CHARACTERS + 1} characters; at most "),
}


@pytest.mark.parametrize("text", FINDINGS)
def test_findings(text):
    found = python.check(text)
    assert {name: getattr(found, name) for name in FINDINGS[text]} == FINDINGS[text]
    assert (found.compiles, bool(found.error)) in ((True, False), (False, True))


@pytest.mark.parametrize("text", COVERAGE)
def test_coverage_is_the_share_of_the_variants_that_matches_name(text):
    assert python.check(ENUM + text).coverage == COVERAGE[text]


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:12]))
def test_text_that_is_no_program_is_a_finding(text):
    found = python.check(text)
    assert (found.parses, found.compiles) == (BAD[text][0], False)
    assert found.error.startswith(BAD[text][1]) and "\n" not in found.error


def test_warnings_are_counted_and_not_shown(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [python.check(text).warnings for text in ("x = 1 is 1", "x = '\\d'", "x = 1\nassert (x, 'y')", "x = 1")]
    assert found == [1, 1, 1, 0]
    assert capfd.readouterr() == ("", "")


def test_a_check_executes_nothing(tmp_path):
    path = tmp_path / "written"
    texts = [f"open({str(path)!r}, 'w')", f"# coding: utf-8\nimport os\nos.mkdir({str(path)!r})", "import antigravity"]
    assert all(found.compiles for found in python.check_all(texts))
    assert not path.exists() and "antigravity" not in sys.modules


def test_checks_in_threads_equal_checks_in_turn():
    texts = [f"x = {n} is {n}\n" * (n % 3) for n in range(30)]
    expected, found = python.check_all(texts), {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: python.check(texts[n])})) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(30)] == expected


# (prompt, what is written, what is left of it)
COMPLETIONS = [
    ("def f(x):\n", "    return x\n\n\ndef g(y):\n    return y\n", "    return x\n"),
    ("def f(x):\n", "    return x\n\n# a comment\nprint(f(1))\n", "    return x\n"),
    ("def f(x):\n", "    a = [\n1,\n]\n    return a\nf(1)\n", "    a = [\n1,\n]\n    return a\n"),
    ("def f(x):\n", "    '''\ntext\ndef\n'''\n    return 1\nx = 1", "    '''\ntext\ndef\n'''\n    return 1\n"),
    ("def f(x):\n", "    return 1 + \\\n2\nprint()", "    return 1 + \\\n2\n"),
    ("def f(x):\n", "# a comment\n    return x\n", "# a comment\n    return x\n"),
    ("def f(x):\n", "    return '#' + \"'\"\nprint('x')\n", "    return '#' + \"'\"\n"),
    ("def f(x):\n    return", " x\nprint()\n", " x\n"),
    ("def f(", "x,\ny):\n    return x\n@cache\ndef g(): pass\n", "x,\ny):\n    return x\n"),
    ("@cache\n", "@other\ndef f():\n    return 1\n@cache\ndef g(): pass\n", "@other\ndef f():\n    return 1\n"),
    ("import os\n\n\n", "def f():\n    return 1\ndef g(): pass\n", "def f():\n    return 1\n"),
    ("def a():\n    return 1\n\ndef f():\n    '''Text.'''\n", "    return 2\na()\n", "    return 2\n"),
    ("class A:\n    def f(self):\n", "        return 1\n    def g(self): pass\nA()\n",
     "        return 1\n    def g(self): pass\n"),
    ("    def f(self):\n", "        return 1\n    def g(self): pass\n", "        return 1\n"),
    ("try:\n    f()\n", "except A:\n    g()\nelse:\n    h()\ni()\n", "except A:\n    g()\nelse:\n    h()\n"),
    ("def f(): ", "return 1\ndef g(): pass\n", "return 1\n"),
    ("def f():\n", "    return (1\ndef g(): pass\n", "    return (1\ndef g(): pass\n"),
    ("def f():\n", "    return 1\n", "    return 1\n"),
    ("def f():\n", "    return 1\n\n", "    return 1\n\n"),
    ("def f():\n", "", ""),
    ("", "def f():\n    return 1\nf()\n", "def f():\n    return 1\n"),
    ("", "x = 1\n", "x = 1\n"),
]  # fmt: skip


@pytest.mark.parametrize("prompt, written, kept", COMPLETIONS)
def test_completions_end_with_the_definition(prompt, written, kept):
    assert python.complete(prompt, written) == prompt + kept


def test_what_is_left_out_does_not_matter():
    """A definition that has ended stays the same, whatever is written after it."""
    for prompt, written, kept in COMPLETIONS:
        if kept != written:
            assert python.complete(prompt, written + "\n)]}'''\0def") == prompt + kept


# (program, tests, kind, class of the failure)
RUNS = [
    ("def f(x):\n    return x + 1", "assert f(1) == 2", "passed", ""),
    ("def f(x):\n    return x", "assert f(1) == 2", "failed", "Assertion"),
    ("def f(x):\n    return y", "assert f(1) == 2", "failed", "Runtime"),
    ("def f(x)", "assert f(1) == 2", "failed", "Syntax"),
    ("import sys; sys.exit(0)", "assert False", "failed", "Other"),
    ("import os; os._exit(0)", "assert False", "failed", "Other"),
    ("while True: pass", "", "timeout", "Timeout"),
    ("x = 'a\\", "assert False", "failed", "Syntax"),
]


@pytest.mark.parametrize("program, tests, kind, error", RUNS)
def test_programs_are_executed_with_their_tests(program, tests, kind, error):
    limits = Limits(seconds=1 if kind == "timeout" else 30)
    outcome = python.run(program, tests, limits)
    assert (outcome.kind, outcome.error) == (kind, error)


def test_the_output_of_a_run_is_that_of_the_program():
    assert python.run("print('hello')", "print('tests')", Limits()).output == "hello\ntests\n"


@pytest.mark.slow
def test_no_text_ends_the_process():
    """Deeply nested texts of many kinds, each in its own process: the parser may refuse them, but not crash."""
    parts = ["(", "[", "{", "{1:", "f(", "a[", "-", "not ", "lambda: ", "x if y else ", "a.", "1+", "x<", "f'{", "(x:=",
             "await ", "yield ", "*", "if x:\n ", "[x for x in ", "(x for x in ", "{**", "x and ", "'a'",
             "@a\n"]  # fmt: skip
    for part in parts:
        for count in (20, 95, 500, 5000, 50_000):
            text = (part * count)[: MAX_CHARACTERS - count] + "1" + {"(": ")", "[": "]"}.get(part[0], "") * count
            code = "import sys; from mlx_gpt.code.python import Python; Python().check(sys.stdin.read())"
            done = subprocess.run([sys.executable, "-c", code], input=text, text=True, capture_output=True)
            assert done.returncode == 0, (part, count, done.stderr[-300:])
