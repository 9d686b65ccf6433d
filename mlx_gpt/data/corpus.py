"""Where text comes from: names, files, folders and patterns of UTF-8 text, as a stream of documents.

A spec is a name, a path or a pattern, and may end in a weight, as `shakespeare:2`. Text is read in pieces, so a corpus
may be larger than memory. Files end documents, and so does `<|eos|>` in a text.
"""

import codecs
import glob
import gzip
import hashlib
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mlx_gpt.config.presets import names_of
from mlx_gpt.data import library, markov
from mlx_gpt.data.library import DOCUMENT_END
from mlx_gpt.errors import BadFile, UserError

# Folders of the standard library that are tests or programs rather than library source.
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz")  # of the files that a folder is read for
PIECE = 1 << 20  # characters, about, that are read at once


class Piece(NamedTuple):
    """A part of a document; whether the document ends with it."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Source:
    """What one spec stands for. `weight` says how often it is read, next to the others."""

    name: str
    weight: float
    num_bytes: int
    read: Callable[[], Iterable[Iterable[str]]]  # files, each a stream of text

    def pieces(self) -> Iterator[Piece]:
        """Its documents, none of them empty, cut so that no piece is much larger than PIECE if its lines are not."""
        for file in self.read():
            yield from _documents(file)


@dataclass(frozen=True)
class Corpus:
    """One or more sources."""

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """About the size of its text."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(source.weight for source in self.sources)

    def texts(self) -> Iterator[str]:
        """All text, in pieces."""
        return (piece.text for source in self.sources for piece in source.pieces())

    @property
    def documents(self) -> list[str]:
        """All documents, in memory."""
        found = [[]]
        for source in self.sources:
            for text, ends in source.pieces():
                found[-1].append(text)
                if ends:
                    found.append([])
        return ["".join(parts) for parts in found if parts]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the documents and their borders. Raises BadFile where there is none."""
        whole, document, empty = hashlib.sha256(), hashlib.sha256(), True
        for source in self.sources:
            for text, ends in source.pieces():
                document.update(text.encode())
                if ends:
                    whole.update(document.digest())
                    document, empty = hashlib.sha256(), False
        if empty:
            raise BadFile(f"corpus {self.name}: no text in it; give a file or folder of UTF-8 text")
        return whole.hexdigest()


def open_corpus(specs: Sequence[str]) -> Corpus:
    """Finds corpus names, files, folders and patterns, in the order given. Reads nothing of files yet."""
    parsed = [_parse(spec) for spec in specs]
    for name, _ in parsed:
        if (times := sum(name == other for other, _ in parsed)) > 1:
            raise UserError(f"corpus {name} is given {times} times; give it once, with a weight: {name}:{times}")
    notes: list[str] = []
    sources = tuple(_source(name, weight, notes) for name, weight in parsed)
    return Corpus(name=corpus_name(specs), sources=sources, notes=tuple(notes))


def corpus_name(specs: Sequence[str]) -> str:
    """A short name for a run folder."""
    first = _parse(specs[0])[0]
    if first not in names_of("corpus"):
        first = re.sub(r"[^\w.-]+", "-", Path(first).name if glob.has_magic(first) else Path(first).resolve().stem)
    return (first.strip("-.") or "text") + (f"-and-{len(specs) - 1}" if len(specs) > 1 else "")


def list_corpora() -> list[dict]:
    """Each named corpus with its title, licence, size in bytes and state."""
    rows = []
    for name in names_of("corpus"):
        if name in BUILT_IN:
            manifest, state = library.manifest(name), "built in"
            manifest["size"] = sum(len(text.encode()) for text in BUILT_IN[name]())
        else:
            manifest = library.manifest(name)
            state = library.state(name)
        rows.append(
            {
                "name": name,
                "title": manifest["title"],
                "license": manifest["license"],
                "bytes": manifest["size"],
                "state": state,
                "network": state == library.ABSENT,
            }
        )
    return rows


def _parse(spec: str) -> tuple[str, float]:
    """The name and the weight of a spec; a file whose own name ends so is meant as it is."""
    name, colon, tail = spec.rpartition(":")
    if not colon or Path(spec).expanduser().exists() or name == "markov":
        return spec, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return spec, 1.0
    if not 0 < weight < 1e6:
        raise UserError(f"corpus {spec}: a weight is a number above 0 and below a million, as {name}:2")
    return name, weight


def _source(name: str, weight: float, notes: list[str]) -> Source:
    if name.startswith("markov:"):
        chain = markov.Chain.parse(name)
        notes.append(chain.note())
        return Source(name, weight, chain.length, lambda: [chain.pieces()])
    if name in BUILT_IN:
        texts = BUILT_IN[name]()
        return Source(name, weight, sum(map(len, texts)), lambda: ([text] for text in texts))
    paths = [library.fetched(name)] if name in names_of("corpus") else _files(name, notes)
    return Source(name, weight, sum(p.stat().st_size for p in paths), lambda: _contents(paths))


def _files(name: str, notes: list[str]) -> list[Path]:
    """The files that a path or a pattern stands for, sorted."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        files = [p for p in inside if p.name.lower().endswith(SUFFIXES)]
        if left := len(inside) - len(files):
            kinds = ", ".join(
                s or "none" for s, _ in Counter(p.suffix for p in inside if p not in files).most_common(5)
            )
            notes.append(
                f"corpus {name}: {left} files left out whose names don't end in {', '.join(SUFFIXES)} ({kinds})"
            )
        if not files:
            raise BadFile(
                f"corpus {name}: no {', '.join(SUFFIXES)} in this folder; put some into it, or give a pattern"
            )
        return files
    if glob.has_magic(name) and not path.exists():
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"corpus {name!r}: the pattern matches no file")
        return files
    if not path.exists():
        raise UserError(
            f"corpus {name!r}: no such name or file; choose from {', '.join(names_of('corpus'))}, markov:2, "
            "or give a path"
        )
    if path.is_char_device() or path.is_block_device():
        raise BadFile(f"corpus {name}: a device; give a file or folder of UTF-8 text")
    if not path.stat().st_size:
        raise BadFile(f"corpus {name}: an empty file; give UTF-8 text")
    return [path]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _contents(paths: Sequence[Path]) -> Iterator[Iterable[str]]:
    """The text of each file; of JSON lines, of each line."""
    for path in paths:
        name = path.name.lower()
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(path)
        else:
            yield _text(path)


def _text(path: Path) -> Iterator[str]:
    """A file's text in pieces. Raises BadFile that names the first byte that is not UTF-8."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        while True:
            block = file.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
                yield text if before else text.removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                place = before - pending + error.start
                raise BadFile(
                    f"corpus {path}: byte {place} is 0x{error.object[error.start]:02x}, not UTF-8 text"
                ) from None
            if not block:
                return
            before += len(block)


def _json_lines(path: Path) -> Iterator[Iterable[str]]:
    """The field `text` of each line."""
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise BadFile(f'corpus {path}: line {number} is no JSON object with a string as "text"') from None
            yield [text.encode("utf-8", "replace").decode()]  # JSON may spell what no UTF-8 holds


def _lines(path: Path, file) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError) as error:
        raise BadFile(f"corpus {path}: not a whole gzip file: {error}") from None


def _opened(path: Path):
    try:
        return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")
    except OSError as error:
        raise BadFile(f"corpus {path}: {error.strerror}; give a readable file of UTF-8 text") from None


def _documents(stream: Iterable[str]) -> Iterator[Piece]:
    """The documents of a stream, cut at DOCUMENT_END and left out where empty, in pieces cut at borders."""
    held, begun = "", False
    for text in stream:
        held += text
        *ended, held = held.split(DOCUMENT_END)
        for document in ended:
            if document or begun:
                yield Piece(document, True)
            begun = False
        if len(held) > PIECE and (cut := _last_border(held)):
            yield Piece(held[:cut], False)
            held, begun = held[cut:], True
    if held or begun:
        yield Piece(held, True)


def _last_border(text: str) -> int:
    """The last place where a line ends after a word, 0 if there is none: a cut there changes no token."""
    end = text.rfind("\n")
    while end > 0 and text[end - 1].isspace():
        end = text.rfind("\n", 0, end)
    return max(end, 0)


def _pydocs() -> list[str]:
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items()) if text]


def _stdlib() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts))
    return [text for text in (p.read_text("utf-8", errors="ignore") for p in files) if text]


BUILT_IN = {"pydocs": _pydocs, "stdlib": _stdlib}
