"""Corpora: named texts, files, folders and glob patterns, read as a stream of documents.

A spec is a name, a path or a pattern, optionally followed by a weight, as in `shakespeare:2`. A file is one document,
or several if it contains `<|eos|>`. Each line of a JSON Lines file is a document. Text is UTF-8 and is read in pieces,
so a corpus may be larger than memory.
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

# Folders of the standard library that contain tests, programs or installed packages rather than library source.
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz")  # of the files that are read from a folder
PIECE = 1 << 20  # approximate size of a piece in characters; also the read size in bytes


class Piece(NamedTuple):
    """A part of a document. `ends` is true for the document's last part."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Source:
    """The text of one spec.

    Attributes:
        name: the spec without its weight.
        weight: how often the source is read, relative to the others.
        num_bytes: the approximate size of its text.
        read: opens the source; yields its files (or JSON lines), each as a stream of strings.
    """

    name: str
    weight: float
    num_bytes: int
    read: Callable[[], Iterable[Iterable[str]]]

    def pieces(self) -> Iterator[Piece]:
        """Yields the nonempty documents in pieces.

        A piece is much larger than PIECE only if one of its lines is, or if it comes from a long JSON line.
        """
        for file in self.read():
            yield from _documents(file)


@dataclass(frozen=True)
class Corpus:
    """One or more sources. `notes` are messages for the user, such as the number of skipped files."""

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The approximate size of the text."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(source.weight for source in self.sources)

    def texts(self) -> Iterator[str]:
        """Yields all text in pieces."""
        return (piece.text for source in self.sources for piece in source.pieces())

    @property
    def documents(self) -> list[str]:
        """All documents, loaded into memory."""
        found = [[]]
        for source in self.sources:
            for text, ends in source.pieces():
                found[-1].append(text)
                if ends:
                    found.append([])
        return ["".join(parts) for parts in found if parts]

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 that depends on the documents' text and borders, but not on how they are spread over files.

        Raises BadFile if the corpus has no text.
        """
        whole, document, empty = hashlib.sha256(), hashlib.sha256(), True
        for source in self.sources:
            for text, ends in source.pieces():
                document.update(text.encode())
                if ends:
                    whole.update(document.digest())
                    document, empty = hashlib.sha256(), False
        if empty:
            raise BadFile(f"corpus {self.name}: contains no text; give a file or folder of UTF-8 text")
        return whole.hexdigest()


def open_corpus(specs: Sequence[str]) -> Corpus:
    """Resolves specs to sources, in the order given. Files are listed here and read later.

    A named corpus that is neither in MLXGPT_CORPUS_DIR nor in the cache is downloaded.

    Raises:
        UserError: if a name, path or weight is invalid, if a pattern matches nothing, if a name occurs twice, or if a
            download fails.
        BadFile: if a file or folder has no text, or if a named corpus has the wrong SHA-256.
    """
    parsed = [_parse(spec) for spec in specs]
    for name, _ in parsed:
        if (times := sum(name == other for other, _ in parsed)) > 1:
            raise UserError(f"corpus {name} is given {times} times; give it once, with a weight: {name}:{times}")
    notes: list[str] = []
    sources = tuple(_source(name, weight, notes) for name, weight in parsed)
    return Corpus(name=corpus_name(specs), sources=sources, notes=tuple(notes))


def corpus_name(specs: Sequence[str]) -> str:
    """Returns a short name for a run folder, such as `shakespeare` or `notes-and-1`."""
    first = _parse(specs[0])[0]
    if first not in names_of("corpus"):
        first = re.sub(r"[^\w.-]+", "-", Path(first).name if glob.has_magic(first) else Path(first).resolve().stem)
    return (first.strip("-.") or "text") + (f"-and-{len(specs) - 1}" if len(specs) > 1 else "")


def list_corpora() -> list[dict]:
    """Describes the named corpora.

    Returns:
        For each corpus a dict of `name`, `title`, `license`, `bytes`, `state` (where its file is, in words) and
        `network` (whether the first use downloads it).
    """
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
    """Splits a spec into name and weight. A spec that is the path of an existing file, as `odd:2`, has no weight."""
    name, colon, tail = spec.rpartition(":")
    if not colon or Path(spec).expanduser().exists() or name == "markov":
        return spec, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return spec, 1.0
    if not 0 < weight < 1e6:
        raise UserError(f"corpus {spec}: the weight must be above 0 and below 1,000,000, as in {name}:2")
    return name, weight


def _source(name: str, weight: float, notes: list[str]) -> Source:
    if name.startswith("markov:"):
        chain = markov.Chain.parse(name)
        notes.append(chain.note())
        return Source(name, weight, chain.length, lambda: [chain.pieces()])
    if name in BUILT_IN:
        texts = BUILT_IN[name]()
        return Source(name, weight, sum(map(len, texts)), lambda: ([text] for text in texts))
    paths = [library.fetch(name)] if name in names_of("corpus") else _files(name, notes)
    return Source(name, weight, sum(p.stat().st_size for p in paths), lambda: _contents(paths))


def _files(name: str, notes: list[str]) -> list[Path]:
    """Returns the files of a path, folder or pattern, sorted by path. Appends a note on skipped files."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _is_dotted(p.relative_to(path)))
        files = [p for p in inside if p.name.lower().endswith(SUFFIXES)]
        if skipped := len(inside) - len(files):
            suffixes = Counter(p.suffix for p in inside if p not in files).most_common(5)
            notes.append(
                f"corpus {name}: {skipped} files left out, since only {', '.join(SUFFIXES)} are read; they end in "
                f"{', '.join(suffix or 'no suffix' for suffix, _ in suffixes)}"
            )
        if not files:
            raise BadFile(f"corpus {name}: no {', '.join(SUFFIXES)} file in this folder; add one, or give a pattern")
        return files
    if glob.has_magic(name) and not path.exists():
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"corpus {name!r}: the pattern matches no file; check its path")
        return files
    if not path.exists():
        raise UserError(
            f"corpus {name!r}: no such name or file; choose from {', '.join(names_of('corpus'))}, markov:2, "
            "or give a path"
        )
    if path.is_char_device() or path.is_block_device():
        raise BadFile(f"corpus {name}: is a device; give a file or folder of UTF-8 text")
    if not path.stat().st_size:
        raise BadFile(f"corpus {name}: is an empty file; give a file of UTF-8 text")
    return [path]


def _is_dotted(path: Path) -> bool:
    """Whether a name in the path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def _contents(paths: Sequence[Path]) -> Iterator[Iterable[str]]:
    """Yields the text of each file as a stream of strings; for JSON Lines, the text of each line."""
    for path in paths:
        name = path.name.lower()
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(path)
        else:
            yield _text(path)


def _text(path: Path) -> Iterator[str]:
    """Yields a file's text in blocks. Raises BadFile with the offset of the first byte that is not UTF-8."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        while True:
            block = file.read(PIECE)
            pending = len(decoder.getstate()[0])  # bytes of an incomplete character at the end of the last block
            try:
                text = decoder.decode(block, final=not block)
                yield text if offset else text.removeprefix("\ufeff")  # a byte order mark
            except UnicodeDecodeError as error:
                position = offset - pending + error.start
                raise BadFile(
                    f"corpus {path}: byte {position} is 0x{error.object[error.start]:02x}, not UTF-8 text; convert the "
                    "file to UTF-8"
                ) from None
            if not block:
                return
            offset += len(block)


def _json_lines(path: Path) -> Iterator[Iterable[str]]:
    """Yields the field `text` of each line, each as a stream of one string. Blank lines are skipped."""
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise BadFile(f'corpus {path}: line {number} is not a JSON object with a string under "text"') from None
            # JSON can escape lone surrogates, which have no UTF-8 form and become "?".
            yield [text.encode("utf-8", "replace").decode()]


def _lines(path: Path, file) -> Iterator[bytes]:
    """Yields the lines of a file. Raises BadFile where decompression fails."""
    try:
        yield from file
    except (OSError, EOFError) as error:
        raise BadFile(f"corpus {path}: not a complete gzip file: {error}; download or compress it again") from None


def _opened(path: Path):
    """Opens a file, decompressed if its name ends in .gz. Raises BadFile."""
    try:
        return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")
    except OSError as error:
        raise BadFile(f"corpus {path}: {error.strerror}; give a readable file of UTF-8 text") from None


def _documents(stream: Iterable[str]) -> Iterator[Piece]:
    """Splits a stream of text into documents at DOCUMENT_END, and long documents into pieces.

    Empty documents are dropped. A long document is cut where no tokenizer merges across the cut (_last_border).
    """
    # `rest` is the text read but not yet yielded; `begun` says that a part of its document was already yielded.
    rest, begun = "", False
    for text in stream:
        rest += text
        *ended, rest = rest.split(DOCUMENT_END)  # a mark cut in two by the stream stays in `rest` and is found later
        for document in ended:
            if document or begun:
                yield Piece(document, True)
            begun = False
        if len(rest) > PIECE and (cut := _last_border(rest)):
            yield Piece(rest[:cut], False)
            rest, begun = rest[cut:], True
    if rest or begun:
        yield Piece(rest, True)


def _last_border(text: str) -> int:
    """Returns the index of the last newline that follows a non-space character, or 0 if there is none.

    A cut there changes no token: character BPE merges within lines only, and GPT-2's pattern never joins a word to the
    whitespace after it. A cut inside a run of whitespace could change tokens, since the pattern matches such runs.

    >>> _last_border("one\\ntwo\\n\\n")
    7
    """
    end = text.rfind("\n")
    while end > 0 and text[end - 1].isspace():
        end = text.rfind("\n", 0, end)
    return max(end, 0)


def _pydocs() -> list[str]:
    """Returns the help topics of the Python language reference, which come with Python."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items()) if text]


def _stdlib() -> list[str]:
    """Returns the source files of Python's standard library, without tests and programs."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts))
    return [text for text in (p.read_text("utf-8", errors="ignore") for p in files) if text]


BUILT_IN = {"pydocs": _pydocs, "stdlib": _stdlib}
