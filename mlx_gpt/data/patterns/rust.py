"""Templates of generated Rust programs: the code of each pattern in plans.py, and its tests."""

from textwrap import indent

NUMBERS = {"integer": "i64", "real": "f64"}
# The import that a program needs if its code contains the key.
IMPORTS = {"HashMap": "use std::collections::HashMap;"}

CODE = {
    "arithmetic": """
/// $doc
fn $name($first: $number, $second: $number) -> $number {
    ($first $one $second) $two $k
}
""",
    "selection": """
/// $doc
fn $name($items: &[i64]) -> Vec<i64> {
    $items
        .iter()
        .filter(|x| *x % $divisor == $rest)
        .map(|x| x $sign $k)
        .collect()
}
""",
    "accumulation": """
/// $doc
fn $name($items: &[$number], $limit: $number) -> $number {
    let mut $result = $start;
    for &x in $items {
        if x $sign $limit {
            $result += x;
        }
    }
    $result
}
""",
    "tally": """
/// $doc
fn $name(text: &str) -> HashMap<&str, i64> {
    let mut counts = HashMap::new();
    for word in text.split_whitespace() {
        *counts.entry(word).or_insert(0) += 1;
    }
    counts
}
""",
    "record": """
/// $doc
#[derive(Debug, Clone, PartialEq)]
struct $name {
    $width: $number,
    $height: $number,
}

impl $name {
    fn new($width: $number, $height: $number) -> Self {
        Self { $width, $height }
    }

    /// Returns $width $sign $height.
    fn $method(&self) -> $number {
        self.$width $sign self.$height
    }

    /// Returns a copy with both fields multiplied by factor.
    fn $other(&self, factor: $number) -> Self {
        Self::new(self.$width * factor, self.$height * factor)
    }
}
""",
    "container": """
/// $doc
#[derive(Debug, Default)]
struct $name {
    $items: Vec<i64>,
}

impl $name {
    /// Adds a value.
    fn $push(&mut self, value: i64) {
        self.$items.push(value);
    }

    /// Removes the last value and returns it.
    fn $pop(&mut self) -> Option<i64> {
        self.$items.pop()
    }

    /// Returns the sum of the values.
    fn total(&self) -> i64 {
        self.$items.iter().sum()
    }
}
""",
    "states": """
/// $doc
#[derive(Debug, Clone, Copy, PartialEq)]
enum $name {
    $first = $one,
    $second = $two,
    $third = $three,
}

impl $name {
    /// Returns the state that follows.
    fn next(self) -> Self {
        match self {
            $name::$first => $name::$second,
            $name::$second => $name::$third,
            $name::$third => $name::$first,
        }
    }
}
""",
    "parsing": """
/// $doc
fn $name(text: &str) -> Result<i64, String> {
    let value: i64 = text
        .parse()
        .map_err(|_| format!("$what: {text:?} is not a number"))?;
    if !($low..=$high).contains(&value) {
        return Err(format!("$what: {value} is not from $low to $high"));
    }
    Ok(value)
}

/// Returns the number, or the default if there is none.
fn ${name}_or(text: &str, default: i64) -> i64 {
    $name(text).unwrap_or(default)
}
""",
    "interface": """
/// $doc
trait $name {
    /// Returns the $method.
    fn $method(&self) -> i64;
}

/// Its $method grows with its count.
struct $one {
    count: i64,
}

/// Its $method is always the same.
struct $two;

impl $name for $one {
    fn $method(&self) -> i64 {
        self.count * $factor
    }
}

impl $name for $two {
    fn $method(&self) -> i64 {
        $fixed
    }
}

/// Adds the $method of all parts.
fn $function(parts: &[Box<dyn $name>]) -> i64 {
    parts.iter().map(|part| part.$method()).sum()
}
""",
    "search": """
/// $doc
fn $name($items: &[i64], $target: i64) -> Option<usize> {
    let (mut low, mut high) = (0, $items.len());
    while low < high {
        let middle = (low + high) / 2;
        if $items[middle] < $target {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if $items.get(low) == Some(&$target) {
        Some(low)
    } else {
        None
    }
}
""",
    "text": """
/// $doc
fn $name(text: &str) -> String {
    text.split_whitespace()
        .filter(|word| word.len() >= $size)
        .map(|word| word.to_uppercase())
        .collect::<Vec<_>>()
        .join("$mark")
}
""",
    "recursion": """
/// $doc
fn $name(number: i64) -> i64 {
    if number < $base {
        return number;
    }
    number % $base + $name(number / $base)
}
""",
    "sequence": """
/// $doc
struct $steps {
    value: i64,
}

impl Iterator for $steps {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        let value = self.value;
        self.value += $step;
        Some(value)
    }
}

/// Returns the first numbers.
fn $name(count: usize) -> Vec<i64> {
    $steps { value: $start }.take(count).collect()
}
""",
}

TESTS = {
    "arithmetic": """
assert_eq!($name($a, $b), $ab);
assert_eq!($name($c, $d), $cd);
assert_eq!($name($o, $o), $zero);
""",
    "selection": """
let expected: Vec<i64> = vec!$expected;
assert_eq!($name(&$given), expected);
assert!($name(&[]).is_empty());
""",
    "accumulation": """
assert_eq!($name(&$given, $bound), $expected);
assert_eq!($name(&[], $bound), $start);
""",
    "tally": """
let counts = $name("$text");
assert_eq!(counts["$word"], $count);
assert_eq!(counts.len(), $distinct);
assert!(!counts.contains_key("$absent"));
""",
    "record": """
let given = $name::new($a, $b);
assert_eq!(given.$method(), $expected);
assert_eq!(given.$other($factor).$method(), $scaled);
assert_eq!(given, $name::new($a, $b));
""",
    "container": """
let mut stack = $name::default();
for value in $given {
    stack.$push(value);
}
assert_eq!(stack.total(), $total);
assert_eq!(stack.$pop(), Some($last));
assert_eq!(stack.total(), $left);
assert_eq!($name::default().$pop(), None);
""",
    "states": """
let all = [$name::$first, $name::$second, $name::$third];
assert_eq!(all.iter().map(|state| *state as i64).sum::<i64>(), $total);
assert_eq!($name::$first.next(), $name::$second);
assert_eq!($name::$third.next(), $name::$first);
""",
    "parsing": """
assert_eq!($name("$good"), Ok($good));
assert!($name("$word").is_err());
assert_eq!(${name}_or("$small", $low), $low);
assert_eq!(${name}_or("$large", $high), $high);
""",
    "interface": """
assert_eq!($one { count: $a }.$method(), $first);
assert_eq!($function(&[Box::new($one { count: $a }), Box::new($two)]), $expected);
assert_eq!($function(&[]), 0);
""",
    "search": """
assert_eq!($name(&$given, $value), Some($index));
assert_eq!($name(&$given, $absent), None);
assert_eq!($name(&[], $value), None);
""",
    "text": """
assert_eq!($name("$given"), "$expected");
assert_eq!($name(""), "");
""",
    "recursion": """
assert_eq!($name($value), $digits);
assert_eq!($name($single), $single);
assert_eq!($name(0), 0);
""",
    "sequence": """
assert_eq!($name($count), $expected);
assert!($name(0).is_empty());
""",
}


def program(doc: str, parts: list[tuple[str, str, str]], as_functions: bool) -> str:
    """Returns a program.

    Args:
        doc: What the program is about, one line.
        parts: For each pattern: a name for its test, its code, and its tests.
        as_functions: Whether the tests are functions of a module. If not, they are statements of main().
    """
    code = "\n\n".join(code for _, code, _ in parts)
    imports = "".join(f"{line}\n\n" for key, line in IMPORTS.items() if key in code)
    if as_functions:
        body = "\n\n".join(f"#[test]\nfn {name}_works() {{\n{_block(tests)}\n}}" for name, _, tests in parts)
        tests = f"#[cfg(test)]\nmod tests {{\n    use super::*;\n\n{_block(body)}\n}}"
    else:
        tests = f"fn main() {{\n{_block(chr(10).join(tests for _, _, tests in parts))}\n}}"
    return f"//! {doc}\n\n{imports}{code}\n\n{tests}\n"


def _block(text: str) -> str:
    return indent(text, " " * 4)
