"""Python: findings from its syntax tree. Parsing and compiling execute nothing of a program."""

import ast
import re
import secrets
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from mlx_gpt.code.language import Findings
from mlx_gpt.code.lines import code_lines, repetition, too_long
from mlx_gpt.rl.sandbox import PYTHON, Limits, Outcome, execute

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.comprehension, ast.match_case)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
LEAVING = (ast.Return, ast.Raise, ast.Break, ast.Continue)
ENUMS = {"Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}
BLOCKS = ("body", "orelse", "finalbody")  # the fields of a statement that hold statements
MAX_COMPREHENSIONS = 10  # one inside another. The compilers of Python 3.12 and 3.13 crash at 50.

# First words of statements that begin a definition or another block, and of lines that continue one.
HEADERS = {"def", "class", "async", "if", "for", "while", "with", "try", "match"}
CONTINUING = {"else", "elif", "except", "finally"}
TOKENS = re.compile(r"""(?P<string>\"\"\"|'''|"|')|(?P<comment>#[^\n]*)|(?P<open>[(\[{])|(?P<close>[)\]}])"""
                    r"|(?P<continued>\\\n)|(?P<newline>\n)")  # fmt: skip

# warnings.catch_warnings() changes the state of the process, so only one program is compiled at a time.
_compiling = threading.Lock()


class Python:
    """The Python that this process runs. See Language for the methods."""

    name = "python"
    suffixes = (".py",)
    comment = "#"
    stops = tuple(f"\n{word}" for word in ("def ", "class ", "@", "if ", "for ", "import ", "from ", "print("))

    def missing(self) -> None:
        """None: programs can always be compiled."""
        return None

    def check(self, text: str) -> Findings:
        """Parses and compiles a program. See Language."""
        lines = code_lines(text, self.comment)
        counted = {"lines": len(lines), "repetition": repetition(lines)}
        if reason := too_long(text):
            return Findings(parses=False, compiles=False, error=reason, **counted)
        with _compiling, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tree, error = _attempt(lambda: ast.parse(text))
            if tree is None:
                return Findings(parses=False, compiles=False, error=error, **counted)
            caught.clear()  # compile() repeats them
            code, error = _attempt(lambda: _compiled(text, tree))
        measured = _measured(tree)
        return Findings(
            parses=True, compiles=code is not None, error=error, warnings=len(caught), **counted, **measured
        )

    def check_all(self, texts: list[str]) -> list[Findings]:
        """The findings of several programs, one after the other."""
        return [self.check(text) for text in texts]

    def complete(self, prompt: str, written: str) -> str:
        """Returns the prompt and the rest of the definition that it begins. See Language.

        The definition ends before the first statement at the prompt's own level of indentation. Comments and blank
        lines before this statement do not belong to it.
        """
        text = prompt + written
        level = min((_indent(line) for _, _, line in _statements(prompt)), default=0)
        is_open, end = False, len(text)
        for start, stop, line in _statements(text):
            word = re.match(r"\w*", line.lstrip())[0]
            if _indent(line) <= level and word not in CONTINUING:
                if is_open and start >= len(prompt):
                    return text[:end]
                is_open = word in HEADERS
            end = stop
        return text

    def run(self, program: str, tests: str, limits: Limits) -> Outcome:
        """Executes a program and then its tests, which are statements that raise an error if they fail.

        The tests pass only if the end of the tests is reached: a program that exits before with code 0 has failed.
        """
        marker = secrets.token_hex(16)
        text = f'{program}\n\n{tests}\n__import__("os").write(1, b"{marker}")\n'
        outcome = execute([PYTHON, "-s", "-P", "-B", "main.py"], {"main.py": text}, limits)
        shown = replace(outcome, output=outcome.output.replace(marker, ""))
        if outcome.passed and marker not in outcome.output:
            return replace(shown, kind="failed", error="Other")
        return shown


def _attempt(function: Callable) -> tuple:
    """Returns the result of a parser or compiler and "", or None and its error in one line."""
    try:
        return function(), ""
    except SyntaxError as error:
        return None, f"{type(error).__name__}: line {error.lineno or 0}: {error.msg}"
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        message = " ".join(str(error).split()) or "too deeply nested"
        return None, f"{type(error).__name__}: {message}"


def _compiled(text: str, tree: ast.Module):
    """Compiles a program.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: It does not compile.
    """
    depths = {tree: 0}
    for node in ast.walk(tree):  # parents come before their children
        for child in ast.iter_child_nodes(node):
            depths[child] = depths[node] + isinstance(child, COMPREHENSIONS)
    if max(depths.values()) > MAX_COMPREHENSIONS:
        raise RecursionError(f"more than {MAX_COMPREHENSIONS} comprehensions inside one another")
    return compile(text, "<program>", "exec", dont_inherit=True)


# -- findings ---------------------------------------------------------------------------------------------------------


def _measured(tree: ast.Module) -> dict:
    """Returns the findings that need a syntax tree, by name."""
    nodes = list(ast.walk(tree))
    blocks = [block for node in nodes for block in _blocks(node)]
    filters = sum(len(node.ifs) for node in nodes if isinstance(node, ast.comprehension))
    return {
        "functions": sum(isinstance(node, FUNCTIONS) for node in nodes),
        "complexity": 1 + filters + sum(isinstance(node, BRANCHES) for node in nodes),
        "nesting": _nesting(tree),
        "unused": _unused(nodes),
        "unreachable": sum(_unreachable(block) for block in blocks),
        "coverage": _coverage(nodes),
        "defined": frozenset(node.name for node in nodes if isinstance(node, DEFINITIONS) and not _is_stub(node)),
    }


def _blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """Returns the lists of statements that a node holds."""
    blocks = [getattr(node, name, None) for name in BLOCKS]
    return [block for block in blocks if isinstance(block, list) and block]


def _nesting(tree: ast.Module) -> int:
    """Returns the depth of the deepest block. The module has depth 0, and `elif` the depth of its `if`."""
    deepest, waiting = 0, [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        for child in ast.iter_child_nodes(node):
            # The block of `except` is as deep as that of its `try`, which the statement has counted.
            opens = isinstance(child, (ast.stmt, ast.match_case)) and bool(
                _blocks(child) or isinstance(child, ast.Match)
            )
            is_elif = isinstance(node, ast.If) and [child] == node.orelse and child.col_offset == node.col_offset
            waiting.append((child, depth + (opens and not is_elif)))
    return deepest


def _unused(nodes: list[ast.AST]) -> int:
    """Returns the number of imports, and of nested or private functions and classes, that the program never names.

    A definition that only names itself is unused. Texts that are a name, as in `__all__`, count as its use.
    """

    def names(nodes) -> Counter:
        found = (getattr(n, "id", None) if isinstance(n, ast.Name) else getattr(n, "value", None) for n in nodes)
        return Counter(name for name in found if isinstance(name, str))

    used, count = names(nodes), 0
    methods = {item for node in nodes if isinstance(node, ast.ClassDef) for item in node.body}
    nested = {inner for node in nodes if isinstance(node, FUNCTIONS) for inner in ast.walk(node) if inner is not node}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)) and getattr(node, "module", None) != "__future__":
            bound = [alias.asname or alias.name.split(".")[0] for alias in node.names]
            count += sum(name != "*" and not used[name] for name in bound)
        elif isinstance(node, DEFINITIONS) and node not in methods and not node.decorator_list:
            is_private = node.name.startswith("_") and not node.name.startswith("__")
            if is_private or node in nested:
                count += used[node.name] <= names(ast.walk(node))[node.name]
    return count


def _unreachable(block: list[ast.stmt]) -> int:
    """Returns the number of statements of a block that follow a return, raise, break or continue."""
    return next((len(block) - i - 1 for i, statement in enumerate(block) if isinstance(statement, LEAVING)), 0)


def _is_stub(node: ast.AST) -> bool:
    """Whether a function does nothing: its body is a text, pass, `...`, an empty return or NotImplementedError."""

    def is_empty(statement: ast.stmt) -> bool:
        if isinstance(statement, (ast.Expr, ast.Return)):
            value = statement.value
            empty = value is None or (isinstance(value, ast.Constant) and value.value is None)
            return empty or (isinstance(statement, ast.Expr) and isinstance(value, ast.Constant))
        raises = isinstance(statement, ast.Raise) and _last_name(statement.exc) == "NotImplementedError"
        return isinstance(statement, ast.Pass) or raises

    return isinstance(node, FUNCTIONS) and all(map(is_empty, node.body))


def _last_name(node: ast.expr | None) -> str:
    """Returns the name V of the expressions V, E.V and of a call of them, "" for other expressions."""
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "attr", getattr(node, "id", ""))


def _coverage(nodes: list[ast.AST]) -> float | None:
    """Returns the share of the variants of the program's enums that its match statements name, see Findings."""
    enums = {}
    for node in nodes:
        if isinstance(node, ast.ClassDef) and ENUMS & set(map(_last_name, node.bases)):
            targets = [t for item in node.body if isinstance(item, ast.Assign) for t in item.targets]
            enums[node.name] = {t.id for t in targets if isinstance(t, ast.Name) and not t.id.startswith("_")}
    handled = total = 0
    for node in nodes:
        if isinstance(node, ast.Match):
            named = {value for case in node.cases if not case.guard for value in _values(case.pattern)}
            for enum in {enum for enum, variant in named if variant in enums.get(enum, ())}:
                handled += len({variant for name, variant in named if name == enum} & enums[enum])
                total += len(enums[enum])
    return handled / total if total else None


def _values(pattern: ast.pattern) -> Iterator[tuple[str, str]]:
    """Yields (E, V) for the alternatives E.V of a pattern."""
    waiting = [pattern]
    while waiting:
        pattern = waiting.pop()
        if isinstance(pattern, ast.MatchOr):
            waiting += pattern.patterns
        elif isinstance(pattern, ast.MatchAs) and pattern.pattern:
            waiting.append(pattern.pattern)
        elif isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Attribute):
            yield _last_name(pattern.value.value), pattern.value.attr


# -- statements of text that need not parse ---------------------------------------------------------------------------


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _statements(text: str) -> Iterator[tuple[int, int, str]]:
    """Yields the beginning, the end and the first line of each statement. Blank lines and comments are left out.

    A statement ends with its line, unless a bracket or a text is open or the line ends with a backslash.
    """
    begin = at = depth = 0
    while begin < len(text):
        token = TOKENS.search(text, at)
        at = token.end() if token else len(text)
        kind = token.lastgroup if token else "newline"
        if kind == "string":
            quote = token["string"]
            any_other = r"(?:\\.|[^\\])*?" if len(quote) == 3 else r"(?:\\.|[^\\\n])*?"
            closing = re.compile(any_other + quote, re.DOTALL).match(text, at)
            at = closing.end() if closing else len(text) if len(quote) == 3 else at
        elif kind in ("open", "close"):
            depth = max(0, depth + (1 if kind == "open" else -1))
        elif kind == "newline" and (not depth or not token):
            line = text[begin:at].split("\n", 1)[0]
            if line.strip() and not line.lstrip().startswith("#"):
                yield begin, at, line
            begin = at
