"""The patterns of generated programs. A plan draws the names and numbers of a pattern, and computes what its tests
expect. It does not depend on the programming language.

A plan returns its local variables, of which the templates of the languages (python.py, rust.py) name some. `kind` is
"integer" or "real" if the numbers can be of either type. All numbers fit into 64 bits, and reals are exact.
"""

import operator
from collections.abc import Callable

from mlx_gpt.data.patterns.words import LIMITS, LISTS, NOUNS, RESULTS, Draw, Names

Plan = dict[str, object]
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def arithmetic(draw: Draw, names: Names) -> Plan:
    """A function of two numbers."""
    name, (first, second) = names.function(), draw.several(NOUNS, 2)
    one, two = draw.pick(list(OPERATIONS)), draw.pick(list(OPERATIONS))
    kind, (k, a, b, c, d) = draw.of_a_kind([draw.between(2, 12), *draw.numbers(4)])
    o = a - a  # 0 or 0.0
    ab, cd, zero = (OPERATIONS[two](OPERATIONS[one](x, y), k) for x, y in ((a, b), (c, d), (o, o)))
    what = {"+": "sum", "-": "difference", "*": "product"}[one]
    doc = draw.pick(
        [
            f"Returns the {what} of {first} and {second}, then {two} {k}.",
            f"Combines {first} and {second}: their {what} {two} {k}.",
            f"Computes ({first} {one} {second}) {two} {k}.",
        ]
    )
    return locals()


def selection(draw: Draw, names: Names) -> Plan:
    """A comprehension that selects and changes the elements of a list."""
    name, items, k = names.function(), draw.pick(LISTS), draw.between(2, 9)
    divisor = draw.between(2, 5)
    rest, sign = draw.below(divisor), draw.pick(list(OPERATIONS))
    given = draw.numbers(draw.between(4, 8))
    expected = [OPERATIONS[sign](x, k) for x in given if x % divisor == rest]
    doc = draw.pick(
        [
            f"Returns x {sign} {k} for each of the {items} that leaves {rest} when divided by {divisor}.",
            f"Selects the {items} with remainder {rest} modulo {divisor}, and computes x {sign} {k} of each.",
        ]
    )
    return locals()


def accumulation(draw: Draw, names: Names) -> Plan:
    """A loop that accumulates the elements of a list."""
    name, items, limit, result = names.function(), draw.pick(LISTS), draw.pick(LIMITS), draw.pick(RESULTS)
    sign, drawn = draw.pick(list(COMPARISONS)), [draw.between(0, 9), draw.between(8, 30)]
    kind, (start, bound, *given) = draw.of_a_kind(drawn + draw.numbers(draw.between(4, 8)))
    expected = start + sum(x for x in given if COMPARISONS[sign](x, bound))
    doc = draw.pick(
        [f"Adds the {items} that are {sign} {limit} to {start}.", f"Returns {start} plus all {items} {sign} {limit}."]
    )
    return locals()


def tally(draw: Draw, names: Names) -> Plan:
    """A dictionary that counts words."""
    name, words = names.function(), draw.several(NOUNS, 3)
    counts = draw.numbers(3, 1, 3)
    listed = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    text = " ".join(draw.several(listed, len(listed)))
    (word, other, _), (count, others, _) = words, counts
    doc = draw.pick(["Counts how often each word occurs.", "Returns the number of times that the text has each word."])
    absent, distinct = "nothing", len(words)
    return locals()


def record(draw: Draw, names: Names) -> Plan:
    """A class or a struct with fields and two methods."""
    name, (width, height) = names.type(), draw.several(NOUNS, 2)
    method, other = f"{draw.pick(['total', 'full', 'joint'])}_{names.noun()}", draw.pick(["scaled", "times", "grown"])
    kind, (factor, a, b) = draw.of_a_kind([draw.between(2, 9), *draw.numbers(2, 1)])
    sign = draw.pick(list(OPERATIONS))
    expected = OPERATIONS[sign](a, b)
    scaled = OPERATIONS[sign](a * factor, b * factor)
    doc = f"{draw.pick(['Holds', 'Describes', 'Stores'])} a {width} and a {height}."
    return locals()


def container(draw: Draw, names: Names) -> Plan:
    """A class with a state that its methods change."""
    name, (push, pop) = names.type(), draw.pick([("push", "pop"), ("add", "take"), ("insert", "remove")])
    items, given = draw.pick(LISTS), draw.numbers(draw.between(3, 5))
    total, last, count = sum(given), given[-1], len(given)
    below, left = given[-2], sum(given[:-1])
    doc = draw.pick([f"A stack of {items}.", f"Keeps {items}; the last one in is the first one out."])
    return locals()


def states(draw: Draw, names: Names) -> Plan:
    """An enum whose states follow each other."""
    name, (first, second, third) = names.type(), [word.capitalize() for word in draw.several(NOUNS, 3)]
    one, two, three = draw.several(range(1, 60), 3)
    doc = draw.pick([f"The states {first}, {second} and {third}.", f"A cycle: {first}, {second}, {third}."])
    total = one + two + three
    return locals()


def parsing(draw: Draw, names: Names) -> Plan:
    """A function that reports what is wrong with its argument."""
    name, what = names.function(), names.noun()
    low = draw.between(1, 20)
    high = low + draw.between(5, 60)
    good = draw.between(low, high)
    small, large, word = low - 1, high + draw.between(1, 9), draw.pick(NOUNS)
    doc = draw.pick([f"Reads the {what}, a number from {low} to {high}.", f"Parses a {what} between {low} and {high}."])
    return locals()


def interface(draw: Draw, names: Names) -> Plan:
    """An interface with two implementations."""
    name, one, two, method = names.type(), names.type(), names.type(), draw.pick(["value", "cost", "weight", "size"])
    function, factor, fixed, a = names.function(), draw.between(2, 9), draw.between(1, 50), draw.between(1, 20)
    first = a * factor
    expected = first + fixed
    doc = draw.pick([f"Something that has a {method}.", f"The interface of things with a {method}."])
    return locals()


def search(draw: Draw, names: Names) -> Plan:
    """A binary search in a sorted list."""
    name, items, target = names.function(), draw.pick(LISTS), draw.pick(["target", "wanted", "key", "needle"])
    given = sorted(draw.several(range(1, 60), draw.between(5, 8)))
    index = draw.below(len(given))
    value, absent = given[index], 60 + draw.below(9)
    doc = draw.pick([f"Finds {target} in sorted {items}.", f"Returns the index of {target} in the sorted {items}."])
    return locals()


def text(draw: Draw, names: Names) -> Plan:
    """A function of strings."""
    name, words = names.function(), draw.several(NOUNS, draw.between(2, 4))
    size, mark = draw.between(3, 6), draw.pick(["-", "_", "+", "/", ":"])
    given = " ".join(words)
    expected = mark.join(word.upper() for word in words if len(word) >= size)
    doc = draw.pick(
        [
            f"Joins the words of {size} letters or more with {mark!r}, in capitals.",
            f"Returns the words that have at least {size} letters in capitals, separated by {mark!r}.",
        ]
    )
    return locals()


def recursion(draw: Draw, names: Names) -> Plan:
    """A function that calls itself."""
    name, base = names.function(), draw.between(3, 16)
    value = draw.between(base, 4000)
    digits, left = 0, value
    while left:
        digits, left = digits + left % base, left // base
    doc = draw.pick([f"Adds the digits of a number in base {base}.", f"Returns the sum of the digits to base {base}."])
    single = base - 1
    return locals()


def sequence(draw: Draw, names: Names) -> Plan:
    """A generator, or an iterator."""
    name, steps, start, step = names.function(), names.type(), draw.between(0, 20), draw.between(1, 9)
    count = draw.between(3, 6)
    expected = [start + step * i for i in range(count)]
    doc = draw.pick([f"Yields {start}, and then numbers {step} apart.", f"Counts from {start} in steps of {step}."])
    return locals()


PLANS: dict[str, Callable[[Draw, Names], Plan]] = {
    plan.__name__: plan
    for plan in (
        arithmetic,
        selection,
        accumulation,
        tally,
        record,
        container,
        states,
        parsing,
        interface,
        search,
        text,
        recursion,
        sequence,
    )
}
