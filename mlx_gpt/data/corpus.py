"""Corpora: named texts, files, folders and glob patterns, read as a stream of documents.

A user selects each text by a string, the spec: a name, a path or a glob pattern, optionally followed by a weight, as in
`shakespeare:2`. A file is one document, or several if it contains `<|eos|>`, which separates documents. Each line of a
JSON Lines file is a document too. Text is UTF-8. Files are read in pieces, so a corpus may be larger than memory.
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
SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".jsonl.gz")  # other files in a folder are skipped
PIECE = 1 << 20  # approximate size of a piece in characters; also the number of bytes per read of a file


class Piece(NamedTuple):
    """A whole document or a part of one. `ends` is true for the last part of a document."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Source:
    """The text of one spec.

    Attributes:
        name: the spec without its weight.
        weight: how often the source is read, relative to the others. An epoch reads a source of weight 2 twice, and
            half of a source of weight 0.5.
        num_bytes: the approximate size of its text in bytes. For gzip files it is the compressed size.
        read: opens the source and yields its texts, one for each file or JSON line. A text is an iterable of strings
            whose concatenation is the text.
    """

    name: str
    weight: float
    num_bytes: int
    read: Callable[[], Iterable[Iterable[str]]]

    def pieces(self) -> Iterator[Piece]:
        """Yields the nonempty documents in pieces.

        A piece can be much longer than PIECE in two cases: if one of its lines is, or if `read` yields a long document
        as a single string, as it does for a JSON line.
        """
        for text in self.read():
            yield from _documents(text)


@dataclass(frozen=True)
class Corpus:
    """One or more sources. `notes` are messages for the user, such as the number of skipped files."""

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The approximate size of the text in bytes, see Source."""
        return sum(source.num_bytes for source in self.sources)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(source.weight for source in self.sources)

    def texts(self) -> Iterator[str]:
        """Yields the text of all documents in pieces, without marking where documents end."""
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

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the documents' SHA-256 digests, in order, as a hexadecimal string.

        It depends on the text, borders and order of the documents, but not on the files or sources that contain them.

        Raises:
            BadFile: if the corpus has no text.
        """
        return self._identity[0]

    @property
    def division(self) -> list[int]:
        """The number of documents of each source. Raises BadFile if the corpus has no text."""
        return self._identity[1]

    @cached_property
    def _identity(self) -> tuple[str, list[int]]:
        """The fingerprint and the division, from a single pass over the text."""
        whole, document, division = hashlib.sha256(), hashlib.sha256(), [0] * len(self.sources)
        for i, source in enumerate(self.sources):
            for text, ends in source.pieces():
                document.update(text.encode())
                if ends:
                    whole.update(document.digest())
                    document = hashlib.sha256()
                    division[i] += 1
        if not any(division):
            raise BadFile(f"corpus {self.name}: contains no text; give a file or folder of UTF-8 text")
        return whole.hexdigest(), division


def open_corpus(specs: Sequence[str]) -> Corpus:
    """Resolves specs to sources, in the order given.

    Files are found here, but are not read before the sources are. A named corpus that is neither in the folder
    MLXGPT_CORPUS_DIR nor in the user's cache is downloaded.

    Args:
        specs: names, paths or patterns, each optionally followed by a weight.

    Raises:
        UserError: if a name, path or weight is invalid, if a pattern matches no file, if two specs have the same name,
            or if a download fails.
        BadFile: if a file is empty or a device, if a folder has no file with one of SUFFIXES, or if a named corpus has
            the wrong SHA-256.
    """
    parsed = [_parse(spec) for spec in specs]
    for name, _ in parsed:
        if (times := sum(name == other for other, _ in parsed)) > 1:
            raise UserError(f"corpus {name} is given {times} times; give it once, with a weight: {name}:{times}")
    notes: list[str] = []
    sources = tuple(_source(name, weight, notes) for name, weight in parsed)
    return Corpus(name=corpus_name(specs), sources=sources, notes=tuple(notes))


def corpus_name(specs: Sequence[str]) -> str:
    """Returns a short name for a run folder: that of the first spec, and the number of further specs.

    Examples are `shakespeare`, and `notes-and-1` for two specs.
    """
    first = _parse(specs[0])[0]
    if first not in names_of("corpus"):
        first = re.sub(r"[^\w.-]+", "-", Path(first).name if glob.has_magic(first) else Path(first).resolve().stem)
    return (first.strip("-.") or "text") + (f"-and-{len(specs) - 1}" if len(specs) > 1 else "")


def list_corpora() -> list[dict]:
    """Describes the named corpora.

    Returns:
        A dict for each corpus, with the keys `name`, `title`, `license`, `bytes`, `state` (a phrase that says where the
        file is) and `network` (whether the next use downloads the file).
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
    """Splits a spec into name and weight. The default weight is 1.

    A number after the last colon is the weight, with two exceptions. If the whole spec is the path of an existing file,
    such as `odd:2`, it has no weight. In `markov:2` the number is the order of the chain; `markov:2:3` has weight 3.
    """
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
    """Finds the source of a name, path or pattern. Appends messages for the user to `notes`."""
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
    """Returns the files of a path, folder or pattern, sorted by path. Appends a message on skipped files to `notes`."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _is_dotted(p.relative_to(path)))
        files = [p for p in inside if p.name.lower().endswith(SUFFIXES)]
        if skipped := len(inside) - len(files):
            suffixes = Counter(p.suffix for p in inside if p not in files).most_common(5)
            notes.append(
                f"corpus {name}: {skipped} files left out, since only {', '.join(SUFFIXES)} are read; the most common "
                f"suffixes of these files: {', '.join(suffix or 'none' for suffix, _ in suffixes)}"
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
    """Whether the file, or a folder in its path, is hidden: its name begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def _contents(paths: Sequence[Path]) -> Iterator[Iterable[str]]:
    """Yields one text for each file, or for each line of a JSON Lines file, as described for `Source.read`."""
    for path in paths:
        name = path.name.lower()
        if name.endswith((".jsonl", ".jsonl.gz")):
            yield from _json_lines(path)
        else:
            yield _text(path)


def _text(path: Path) -> Iterator[str]:
    """Yields the text of a file in blocks. Raises BadFile at the first byte that is not UTF-8, and names its offset."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _opened(path) as file:
        while True:
            block = file.read(PIECE)
            pending = len(decoder.getstate()[0])  # bytes of a character that began at the end of the previous block
            try:
                text = decoder.decode(block, final=not block)
                yield text if offset else text.removeprefix("\ufeff")  # a byte order mark
            except UnicodeDecodeError as error:
                position = offset - pending + error.start  # the decoder counts error.start from the first pending byte
                raise BadFile(
                    f"corpus {path}: byte {position} is 0x{error.object[error.start]:02x}, not UTF-8 text; convert the "
                    "file to UTF-8"
                ) from None
            if not block:
                return
            offset += len(block)


def _json_lines(path: Path) -> Iterator[Iterable[str]]:
    """Yields the field `text` of each line as a list of one string. Blank lines are skipped.

    Raises:
        BadFile: if a line is not a JSON object with a string `text`, or if the file cannot be read.
    """
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
            # JSON can contain escaped lone surrogates, such as "\ud800". UTF-8 cannot encode them; they become "?".
            yield [text.encode("utf-8", "replace").decode()]


def _lines(path: Path, file) -> Iterator[bytes]:
    """Yields the lines of an open file. Raises BadFile if a gzip file is truncated or has a wrong checksum."""
    try:
        yield from file
    except (OSError, EOFError) as error:
        raise BadFile(f"corpus {path}: not a complete gzip file: {error}; download or compress it again") from None


def _opened(path: Path):
    """Opens a file for reading bytes, decompressed if its name ends in .gz. Raises BadFile if that fails."""
    try:
        return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")
    except OSError as error:
        raise BadFile(f"corpus {path}: {error.strerror}; give a readable file of UTF-8 text") from None


def _documents(stream: Iterable[str]) -> Iterator[Piece]:
    """Splits a text, given as a stream of strings, into documents at DOCUMENT_END, and long documents into pieces.

    Empty documents are dropped. A long document is cut only where the cut changes no token, see _last_border.
    """
    # `rest` is the text that was read but not yet yielded. `begun` is true if a part of its document was yielded.
    rest, begun = "", False
    for text in stream:
        rest += text
        # A DOCUMENT_END that lies across two strings of the stream is found when the second one is appended to `rest`.
        *ended, rest = rest.split(DOCUMENT_END)
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

    A cut before that newline changes no token. The BPE of characters merges within lines only. The regular expression
    with which GPT-2 splits a text into words never joins a non-space character to the whitespace after it. It does
    match runs of whitespace, so a cut inside a run could change tokens.

    >>> _last_border("one\\ntwo\\n\\n")
    7
    """
    end = text.rfind("\n")
    while end > 0 and text[end - 1].isspace():
        end = text.rfind("\n", 0, end)
    return max(end, 0)


def _pydocs() -> list[str]:
    """Returns the texts of Python's help(), which come with Python: one document for each topic."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items()) if text]


def _stdlib() -> list[str]:
    """Returns the source files of Python's standard library, without the folders in NOT_LIBRARY."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts))
    return [text for text in (p.read_text("utf-8", errors="ignore") for p in files) if text]


BUILT_IN = {"pydocs": _pydocs, "stdlib": _stdlib}
