"""Laws of Rust as a language of programs. Tests that need the compiler are skipped without it."""

import random

import pytest

from mlx_gpt.code import rust as module
from mlx_gpt.code.languages import language_of
from mlx_gpt.code.rust_tokens import is_balanced, tokens_of, without_comments
from mlx_gpt.errors import UserError
from mlx_gpt.rl.sandbox import Limits

rust = language_of("rust")
needs_rustc = pytest.mark.skipif(bool(rust.missing()), reason=f"needs rustc: {rust.missing()}")

TOKENS = {
    "a.b": ["a", ".", "b"],
    "a/*x/*y*/z*/b//c\nd": ["a", "b", "d"],
    "/* open": [],
    "'a' 'b '\\'' '\\u{1F600}' '\"'": ["'a'", "'b", "'\\''", "'\\u{1F600}'", "'\"'"],
    "<'a>(x: &'static str)": ["<", "'a", ">", "(", "x", ":", "&", "'static", "str", ")"],
    '"a\\"{//" b"{" c': ['"a\\"{//"', 'b"{"', "c"],
    'r#"a"{"# r"\\" br##"x"#"##': ['r#"a"{"#', 'r"\\"', 'br##"x"#"##'],
    'r#fn r#"': ["fn", 'r#"'],
    "1..2 1.5e3_f64 0x1F 1..=x": ["1", "..", "2", "1.5e3_f64", "0x1F", "1", "..=", "x"],
    "a=>b->c::d&&e||f": ["a", "=>", "b", "->", "c", "::", "d", "&&", "e", "||", "f"],
    'é_1 = "': ["é_1", "=", '"'],
}

ENUM = "pub enum E { A, #[allow(dead_code)] B(u8, u8), C { x: u8 }, }\n"
FINDINGS = {
    "": {"functions": 0, "complexity": 1, "nesting": 0, "lines": 0, "repetition": 0.0, "coverage": None},
    "// a\n\n/* b\n c */\nfn f() { g() } // d\n": {"lines": 1, "functions": 1, "nesting": 1},
    "fn f() { let s = \"fn g() { if\"; let t = 'x'; let _ = (s, t); }": {"functions": 1, "complexity": 1, "nesting": 1},
    "impl A { fn f(&self) {} fn g(x: fn(u8) -> u8) { if x(1) > 1 { h() } } }": {"functions": 2, "nesting": 3},
    "impl T for A { fn f<'a>(x: impl for<'b> Fn(&'b u8)) { for i in 0..3 { x(&i) } } }": {"complexity": 2},
    "fn f() { if a {} else if b {} while c {} loop {} match d { 1 => (), 2 | 3 => (), _ => () } }": {"complexity": 8},
    "use a::{b, c::{d, e}};": {"nesting": 0},
    "fn f() {\n    g();\n    g();\n}\n}\n": {"repetition": 1 / 3},
    "fn a() {} fn b() { todo!() } fn c() { unimplemented!(\"later\"); } fn d() -> u8 { 1 } trait T { fn e(); }": {
        "defined": {"d", "T"}},
    "struct S; enum E { A } union U { a: u8 } type X = u8; fn r#match() { x() }": {
        "defined": {"S", "E", "U", "X", "match"}},
    ENUM + "fn f(e: E) { match e { E::A => {} E::B(..) => (), E::C { .. } => {} } }": {"coverage": 1.0},
    ENUM + "fn f(e: E) { match e { E::A | E::B(1, _) => {} _ => {} } }": {"coverage": 2 / 3},
    ENUM + "fn f(e: &E) { match *e { crate::E::A => {} E::B(x, _) if x > 1 => {} _ => {} } }": {"coverage": 1 / 3},
    ENUM + "impl E { fn f(&self) { match self { &Self::A => {} other => {} } } }": {"coverage": 1 / 3},
    ENUM + "use E::*; fn f(e: E) { match e { A => match 1 { 1 => 2, _ => 3 }, _ => 4 }; }": {"coverage": 1 / 3},
    ENUM + "fn f(x: u8) { match x { 1 => {} _ => {} } }": {"coverage": None},
}  # fmt: skip

# -> parses, compiles, warnings, unused, unreachable, and the beginning of the error
COMPILED = {
    "": (True, True, 0, 0, 0, ""),
    "pub fn f(x: u8) -> u8 { x }": (True, True, 0, 0, 0, ""),
    "fn f() {}\nuse std::fmt;\npub fn g() { let x = 1; }": (True, True, 3, 3, 0, ""),
    "pub fn f() -> u8 { return 1; 2 }": (True, True, 1, 0, 1, ""),
    "enum E { A, B }\npub fn f() -> u8 { E::A as u8 }": (True, True, 1, 1, 0, ""),
    "pub fn f() -> u8 { x }": (True, False, 0, 0, 0, "line 1: cannot find value `x` in this scope (E0425)"),
    "pub fn f() -> u8 { \"a\" }": (True, False, 0, 0, 0, "line 1: mismatched types (E0308)"),
    "pub fn f() { unknown!() }": (True, False, 0, 0, 0, "line 1: cannot find macro `unknown`"),
    "pub fn f( {": (False, False, 0, 0, 0, "line 1: "),
    "}\nfn f() {": (False, False, 0, 0, 0, "line 1: unexpected closing delimiter: `}`"),
    "def f(): pass": (False, False, 0, 0, 0, "line 1: "),
    "mod absent;": (True, False, 0, 0, 0, "line 1: file not found for module `absent` (E0583)"),
    "extern crate absent;": (True, False, 0, 0, 0, "line 1: can't find crate for `absent` (E0463)"),
    'pub const X: &str = include_str!("/etc/hostname");': (True, False, 0, 0, 0, "include_str! reads "),
    'include!("/etc/hostname");': (True, False, 0, 0, 0, "include! reads "),
    'use std::include as x; x!("/etc/hostname");': (True, False, 0, 0, 0, "include! reads "),
    'pub const X: Option<&str> = option_env!("HOME");': (True, False, 0, 0, 0, "option_env! reads "),
    '#[path = "/etc/hostname"] mod x;': (True, False, 0, 0, 0, "#[path] reads "),
    "pub fn f() { for (a, _) in std::env::vars() { println!(\"{a}\") } }": (True, True, 0, 0, 0, ""),
    "macro_rules! m { () => { m!() m!() } }\nm!();": (True, False, 0, 0, 0, "line 1: "),
}  # fmt: skip


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text):
    assert [token.text for token in tokens_of(text)] == TOKENS[text]


def test_tokens_and_comments_cover_any_text():
    """Texts of random pieces: every token is where it says, and no character but spaces and comments is left out."""
    pieces = ['"', "'", "/*", "*/", "//", "\n", "r#", "r", "#", "{", "}", "a", "\\", " ", "1", ".", "=>", "é", "\0"]
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randrange(12)))
        tokens, at = tokens_of(text), 0
        kept = tokens_of(without_comments(text))
        assert [token.text for token in kept] == [token.text for token in tokens], text
        for token in tokens:
            assert token.start >= at and text[token.start : token.end].endswith(token.text)
            between = text[at : token.start].strip()
            assert not between or between.startswith(("/*", "//")), text
            at = token.end


@pytest.mark.parametrize("text", FINDINGS)
def test_findings_that_need_no_compiler(text, monkeypatch):
    monkeypatch.setattr(module, "toolchain", lambda: None)
    found = rust.check(text)
    assert {name: getattr(found, name) for name in FINDINGS[text]} == FINDINGS[text]
    assert found.compiles is None and found.parses == is_balanced(tokens_of(text))


def test_without_a_compiler_it_is_missing(monkeypatch):
    monkeypatch.setattr(module, "toolchain", lambda: None)
    assert "rustup" in rust.missing()
    with pytest.raises(UserError, match="rustc was not found"):
        rust.run("", "fn main() {}", Limits())


@needs_rustc
def test_findings_of_the_compiler():
    found = rust.check_all(list(COMPILED))
    for (text, (*expected, error)), f in zip(COMPILED.items(), found, strict=True):
        assert [f.parses, f.compiles, f.warnings, f.unused, f.unreachable] == expected, (text, f)
        assert f.error.startswith(error) and bool(f.error) == (not f.compiles) and "\n" not in f.error, (text, f)


@needs_rustc
def test_long_and_deep_texts_are_findings():
    texts = ["x" * 200_000, "fn f() { " + "(" * 20_000, "pub fn f() -> u8 { " + "-" * 20_000 + "1 }", "\0", "\ufeff'"]
    assert not any(found.compiles for found in rust.check_all(texts))


# (prompt, what is written, what is left of it)
COMPLETIONS = [
    ("fn f() -> u8 {\n", "    if a { 1 } else { 2 }\n}\n\nfn g() {}\n", "    if a { 1 } else { 2 }\n}"),
    ("fn f() -> u8 {", " 1 } fn g() {}", " 1 }"),
    ("fn f(a: [u8; 3]) -> u8 ", "{ a[0]; 1 }\nfn g() {}", "{ a[0]; 1 }"),
    ("fn f(", "a: u8) { }\nfn g() {}", "a: u8) { }"),
    ("struct S", "(u8);\nstruct T;", "(u8);"),
    ("struct S", ";\nstruct T;", ";"),
    ("impl S {\n    fn f(&self) {\n", "    }\n    fn g(&self) {}\n}\nfn h() {}", "    }\n    fn g(&self) {}\n}"),
    ("use std::fmt;\n", "fn f() {}\nfn g() {}", "fn f() {}"),
    ("fn a() {}\nfn f() {\n", "}\nfn g() {}", "}"),
    ("fn f() {\n", '    x("}"); // }\n    y(\'}\'); /* } */\n}\n}', '    x("}"); // }\n    y(\'}\'); /* } */\n}'),
    ("fn f() {\n", "    let x = r#\"}\"}\"#;\n}\n}", "    let x = r#\"}\"}\"#;\n}"),
    ("fn f<'a>(x: &'a str) {\n", "    x;\n}\n'}", "    x;\n}"),
    ("fn f() {\n", "    g();\n", "    g();\n"),
    ("fn f() {\n", "", ""),
    ("fn f() { (", ") }}", ") }"),
    ("", "fn f() {}\nfn g() {}", "fn f() {}"),
]  # fmt: skip


@pytest.mark.parametrize("prompt, written, kept", COMPLETIONS)
def test_completions_end_with_the_definition(prompt, written, kept):
    assert rust.complete(prompt, written) == prompt + kept
    if kept != written:  # whatever follows
        assert rust.complete(prompt, written + '\n"}{') == prompt + kept


GOOD = "fn f(x: u8) -> u8 { x + 1 }"
# (program, tests, kind, class of the failure)
RUNS = [
    (GOOD, "#[test] fn a() { assert_eq!(f(1), 2); }", "passed", ""),
    (GOOD, "#[cfg(test)] mod tests { use super::*; #[test] fn a() { assert_eq!(f(1), 3); } }", "failed", "Assertion"),
    (GOOD, "fn main() { assert_eq!(f(1), 2); }", "passed", ""),
    (GOOD, 'fn main() -> Result<(), String> { Err("no".into()) }', "failed", "Other"),
    ("fn f(x: u8) -> u8 { panic!() }", "fn main() { f(1); }", "failed", "Runtime"),
    ("fn f(x: u8) -> u8 { std::process::exit(0) }", "fn main() { f(1); }", "failed", "Other"),
    ("fn f(x: u8) -> u8 { y }", "fn main() { f(1); }", "failed", "Syntax"),
    ("fn f(x: u8) -> u8 { loop {} }", "fn main() { f(1); }", "timeout", "Timeout"),
    ("fn f(x: u8) -> u8 { vec![1u8; 1 << 40][3] }", "fn main() { f(1); }", "memory", "Memory"),
    ('const X: &str = include_str!("/etc/hostname");', "fn main() {}", "failed", "Syntax"),
    (GOOD, "#[test] fn a() { assert!(std::fs::write(\"/x\", \"\").is_err() && std::env::var(\"USER\").is_err()); }",
     "passed", ""),
]  # fmt: skip


@needs_rustc
@pytest.mark.parametrize("program, tests, kind, error", RUNS)
def test_programs_are_executed_with_their_tests(program, tests, kind, error):
    outcome = rust.run(program, tests, Limits(seconds=1 if kind == "timeout" else 30))
    assert (outcome.kind, outcome.error) == (kind, error), outcome
