"""Templates of generated Python programs: the code of each pattern in plans.py, and its tests."""

from textwrap import indent

NUMBERS = {"integer": "int", "real": "float"}
# The import that a program needs if its code contains the key.
IMPORTS = {
    "@dataclass": "from dataclasses import dataclass",
    "(Enum)": "from enum import Enum",
    "(ABC)": "from abc import ABC, abstractmethod",
    "Iterator[": "from collections.abc import Iterator",
}

CODE = {
    "arithmetic": '''
def $name($first: $number, $second: $number) -> $number:
    """$doc"""
    return ($first $one $second) $two $k
''',
    "selection": '''
def $name($items: list[int]) -> list[int]:
    """$doc"""
    return [x $sign $k for x in $items if x % $divisor == $rest]
''',
    "accumulation": '''
def $name($items: list[$number], $limit: $number) -> $number:
    """$doc"""
    $result = $start
    for x in $items:
        if x $sign $limit:
            $result += x
    return $result
''',
    "tally": '''
def $name(text: str) -> dict[str, int]:
    """$doc"""
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
''',
    "record": '''
@dataclass(frozen=True)
class $name:
    """$doc"""

    $width: $number
    $height: $number

    def $method(self) -> $number:
        """Returns $width $sign $height."""
        return self.$width $sign self.$height

    def $other(self, factor: $number) -> "$name":
        """Returns a copy with both fields multiplied by factor."""
        return $name(self.$width * factor, self.$height * factor)
''',
    "container": '''
class $name:
    """$doc"""

    def __init__(self) -> None:
        self.$items: list[int] = []

    def $push(self, value: int) -> None:
        """Adds a value."""
        self.$items.append(value)

    def $pop(self) -> int | None:
        """Removes the last value and returns it, or None if there is none."""
        return self.$items.pop() if self.$items else None

    def total(self) -> int:
        """Returns the sum of the values."""
        return sum(self.$items)
''',
    "states": '''
class $name(Enum):
    """$doc"""

    $first = $one
    $second = $two
    $third = $three

    def next(self) -> "$name":
        """Returns the state that follows."""
        match self:
            case $name.$first:
                return $name.$second
            case $name.$second:
                return $name.$third
            case $name.$third:
                return $name.$first
''',
    "parsing": '''
def $name(text: str) -> int:
    """$doc

    Raises:
        ValueError: If the text is no number, or the number is out of range.
    """
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"$what: {text!r} is not a number") from None
    if not $low <= value <= $high:
        raise ValueError(f"$what: {value} is not from $low to $high")
    return value


def ${name}_or(text: str, default: int) -> int:
    """Returns the number, or the default if there is none."""
    try:
        return $name(text)
    except ValueError:
        return default
''',
    "interface": '''
class $name(ABC):
    """$doc"""

    @abstractmethod
    def $method(self) -> int:
        """Returns the $method."""


class $one($name):
    """Its $method grows with its count."""

    def __init__(self, count: int) -> None:
        self.count = count

    def $method(self) -> int:
        return self.count * $factor


class $two($name):
    """Its $method is always the same."""

    def $method(self) -> int:
        return $fixed


def $function(parts: list[$name]) -> int:
    """Adds the $method of all parts."""
    return sum(part.$method() for part in parts)
''',
    "search": '''
def $name($items: list[int], $target: int) -> int | None:
    """$doc"""
    low, high = 0, len($items)
    while low < high:
        middle = (low + high) // 2
        if $items[middle] < $target:
            low = middle + 1
        else:
            high = middle
    return low if low < len($items) and $items[low] == $target else None
''',
    "text": '''
def $name(text: str) -> str:
    """$doc"""
    return "$mark".join(word.upper() for word in text.split() if len(word) >= $size)
''',
    "recursion": '''
def $name(number: int) -> int:
    """$doc"""
    if number < $base:
        return number
    return number % $base + $name(number // $base)
''',
    "sequence": '''
def $name(count: int) -> Iterator[int]:
    """$doc"""
    value = $start
    for _ in range(count):
        yield value
        value += $step
''',
}

TESTS = {
    "arithmetic": """
assert $name($a, $b) == $ab
assert $name($c, $d) == $cd
assert $name($o, $o) == $zero
""",
    "selection": """
assert $name($given) == $expected
assert $name([]) == []
""",
    "accumulation": """
assert $name($given, $bound) == $expected
assert $name([], $bound) == $start
""",
    "tally": """
counts = $name("$text")
assert counts["$word"] == $count
assert len(counts) == $distinct
assert "$absent" not in counts
""",
    "record": """
given = $name($a, $b)
assert given.$method() == $expected
assert given.$other($factor).$method() == $scaled
assert given == $name($a, $b)
""",
    "container": """
stack = $name()
for value in $given:
    stack.$push(value)
assert stack.total() == $total
assert stack.$pop() == $last
assert stack.total() == $left
assert $name().$pop() is None
""",
    "states": """
assert sum(state.value for state in $name) == $total
assert $name.$first.next() is $name.$second
assert $name.$third.next() is $name.$first
""",
    "parsing": """
assert $name("$good") == $good
assert ${name}_or("$small", $low) == $low
assert ${name}_or("$large", $high) == $high
assert ${name}_or("$word", $good) == $good
""",
    "interface": """
assert $one($a).$method() == $first
assert $function([$one($a), $two()]) == $expected
assert $function([]) == 0
""",
    "search": """
assert $name($given, $value) == $index
assert $name($given, $absent) is None
assert $name([], $value) is None
""",
    "text": """
assert $name("$given") == "$expected"
assert $name("") == ""
""",
    "recursion": """
assert $name($value) == $digits
assert $name($single) == $single
assert $name(0) == 0
""",
    "sequence": """
assert list($name($count)) == $expected
assert list($name(0)) == []
""",
}


def program(doc: str, parts: list[tuple[str, str, str]], as_functions: bool) -> str:
    """Returns a program.

    Args:
        doc: What the program is about, one line.
        parts: For each pattern: a name for its test, its code, and its tests.
        as_functions: Whether the tests are functions. If not, they are statements of the program.
    """
    code = "\n\n\n".join(code for _, code, _ in parts)
    imports = "\n".join(sorted(line for key, line in IMPORTS.items() if key in code))
    if as_functions:
        tests = "\n\n\n".join(f"def test_{name}() -> None:\n{indent(tests, ' ' * 4)}" for name, _, tests in parts)
        tests += '\n\n\nif __name__ == "__main__":\n' + "\n".join(f"    test_{name}()" for name, _, _ in parts)
    else:
        tests = "\n".join(tests for _, _, tests in parts)
    head = f'"""{doc}"""\n' + (f"\n{imports}\n" if imports else "")
    return f"{head}\n\n{code}\n\n\n{tests}\n"
