"""Corpora: named texts, files, folders and glob patterns, read as a stream of documents.

A user selects each text by a string, the spec: a name, a path or a glob pattern, optionally followed by a weight, as in
`shakespeare:2`. A file is one document, or several if it contains `<|eos|>`, which separates documents. Each line of a
JSON Lines file is a document too. Text is UTF-8. Files are read in pieces, so a corpus may be larger than memory. A
token file, whose name ends in `.tokens`, holds the ids of documents in place of their text.
"""

import difflib
import glob
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlx_gpt.config.presets import names_of
from mlx_gpt.data import idfiles, library, markov
from mlx_gpt.data.idfiles import IdFile
from mlx_gpt.data.library import DOCUMENT_END
from mlx_gpt.data.patterns import programs
from mlx_gpt.data.textfiles import read_documents, text_size
from mlx_gpt.errors import BadFile, UserError

# Folders of the standard library that contain tests, programs or installed packages rather than library source.
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SUFFIXES = (".txt", ".md", ".py", ".rs", ".jsonl", ".jsonl.gz")  # other files in a folder are skipped
PIECE = 1 << 20  # approximate size of a piece in characters; also the number of bytes per read of a file
MAX_LINE = 8 << 20  # a longer line is cut, in characters; encoding needs up to 26 bytes of memory per character


class Piece(NamedTuple):
    """A whole document or a part of one: its text, or its ids if it comes from a token file.

    `ends` is true for the last part of a document.
    """

    text: str | np.ndarray
    ends: bool


@dataclass(frozen=True)
class Source:
    """The text of one spec.

    Attributes:
        name: the spec without its weight.
        weight: how often the source is read, relative to the others. An epoch reads a source of weight 2 twice, and
            half of a source of weight 0.5.
        num_bytes: the approximate size of its text in bytes: that of its files, decompressed.
        read: opens the source and yields its texts, one for each file or JSON line. A text is an iterable of strings
            whose concatenation is the text.
        ids: the token file that holds the ids of the documents; None if they are text. `read` is then not called.
    """

    name: str
    weight: float
    num_bytes: int
    read: Callable[[], Iterable[Iterable[str]]] = tuple
    ids: IdFile | None = None

    def pieces(self) -> Iterator[Piece]:
        """Yields the nonempty documents in pieces.

        A piece can be longer than PIECE if one of its lines is, or if `read` yields a longer string. A line that is
        longer than MAX_LINE is cut.
        """
        if self.ids:
            yield from (Piece(ids, ends) for ids, ends in self.ids.pieces())
        for text in self.read():
            yield from documents(text)


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
        """Yields the text of all documents in pieces, without marking where documents end.

        Raises:
            UserError: if a source is a token file.
        """
        for source in self.sources:
            if source.ids:
                raise UserError(
                    f"corpus {source.name}: holds token ids, not text; give the vocabulary that it was imported with, "
                    "as --vocab tokenizer.json"
                )
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
                document.update(text.encode() if isinstance(text, str) else text.astype("<u4").tobytes())
                if ends:
                    whole.update(document.digest())
                    document = hashlib.sha256()
                    division[i] += 1
        if not any(division):
            raise BadFile(f"corpus {self.name}: contains no text; give a file or folder of UTF-8 text")
        return whole.hexdigest(), division


def open_corpus(specs: Sequence[str]) -> Corpus:
    """Resolves specs to sources, in the order given.

    Files are found here, but are not read before the sources are. Only gzip files are read, to measure their size. A
    named corpus that is neither in the folder MLXGPT_CORPUS_DIR nor in the user's cache is downloaded.

    Args:
        specs: names, paths or patterns, each optionally followed by a weight.

    Raises:
        UserError: if a name, path or weight is invalid, if a pattern matches no file, if two specs have the same name,
            or if a download fails.
        BadFile: if a file is empty or a special file, such as a device, if a folder has no file with one of SUFFIXES,
            if a gzip file is not complete or expands too far, or if a named corpus has the wrong SHA-256.
    """
    parsed = [split_spec(spec) for spec in specs]
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
    first = split_spec(specs[0])[0]
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


def split_spec(spec: str) -> tuple[str, float]:
    """Splits a spec into name and weight. The default weight is 1.

    A number after the last colon is the weight, with two exceptions. If the whole spec is the path of an existing file,
    such as `odd:2`, it has no weight. The first number after a name of GENERATED belongs to the name: in `markov:2` it
    is the order of the chain, and `markov:2:3` has weight 3.
    """
    name, colon, tail = spec.rpartition(":")
    if not colon or Path(spec).expanduser().exists() or name in GENERATED:
        return spec, 1.0
    try:
        weight = float(tail)
    except ValueError:
        return spec, 1.0
    if not name.strip():
        raise UserError(f"corpus {spec!r}: has no name; give a name or a path before the weight, as in shakespeare:2")
    if not 0 < weight < 1e6:
        raise UserError(f"corpus {spec}: the weight must be above 0 and below 1,000,000, as in {name}:2")
    return name, weight


def _source(name: str, weight: float, notes: list[str]) -> Source:
    """Finds the source of a name, path or pattern. Appends messages for the user to `notes`."""
    if (make := GENERATED.get(name.partition(":")[0])) and not Path(name).exists():
        made = make(name)
        notes.append(made.note())
        return Source(name, weight, made.num_bytes, made.texts)
    if name in BUILT_IN:
        texts = BUILT_IN[name]()
        return Source(name, weight, sum(map(len, texts)), lambda: ([text] for text in texts))
    paths = [library.fetch(name)] if name in names_of("corpus") else _files(name, notes)
    if paths[0].name.endswith(idfiles.SUFFIX) and len(paths) == 1:
        ids = idfiles.token_file(paths[0])
        return Source(name, weight, ids.num_bytes, ids=ids)
    num_bytes = sum(map(text_size, paths))
    return Source(name, weight, num_bytes, lambda: (text for path in paths for text in read_documents(path, PIECE)))


def _files(name: str, notes: list[str]) -> list[Path]:
    """Returns the files of a path, folder or pattern, sorted by path. Appends a message on skipped files to `notes`."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _is_dotted(p.relative_to(path)))
        files = [p for p in inside if p.name.lower().endswith(SUFFIXES)]
        if skipped := len(inside) - len(files):
            read = set(files)
            suffixes = Counter(p.suffix for p in inside if p not in read).most_common(5)
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
        near = difflib.get_close_matches(name.lower(), names_of("corpus"), n=1)
        raise UserError(
            f"corpus {name!r}: no such name or file; {f'did you mean {near[0]}? Or ' if near else ''}choose from "
            f"{', '.join(names_of('corpus'))}, markov:2, "
            f"{', '.join(f'{generated}:500' for generated in programs.LANGUAGES)}, or give a path"
        )
    if not path.is_file():
        raise BadFile(f"corpus {name}: is a device or another special file; give a file or folder of UTF-8 text")
    if not path.stat().st_size:
        raise BadFile(f"corpus {name}: is an empty file; give a file of UTF-8 text")
    return [path]


def _is_dotted(path: Path) -> bool:
    """Whether the file, or a folder in its path, is hidden: its name begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def documents(stream: Iterable[str]) -> Iterator[Piece]:
    """Splits a text, given as a stream of strings, into documents at DOCUMENT_END, and long documents into pieces.

    Empty documents are dropped. A long document is cut only where the cut changes no token, see _last_border. A line of
    more than MAX_LINE characters is cut between words, or anywhere if it has no spaces; a byte-pair encoding merges
    nothing across that cut.
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
        cut = _last_border(rest, "\n") if len(rest) > PIECE else 0
        if not cut and len(rest) > MAX_LINE:
            cut = _last_border(rest, " ") or len(rest) - len(DOCUMENT_END)  # no mark lies across this cut
        if cut:
            yield Piece(rest[:cut], False)
            rest, begun = rest[cut:], True
    if rest or begun:
        yield Piece(rest, True)


def _last_border(text: str, space: str) -> int:
    """Returns the index of the last newline, or other `space`, that follows a non-space character, or 0.

    A cut before that newline changes no token. The BPE of characters merges within lines only. The regular expression
    with which GPT-2 splits a text into words never joins a non-space character to the whitespace after it. It does
    match runs of whitespace, so a cut inside a run could change tokens.

    >>> _last_border("one\\ntwo\\n\\n", "\\n")
    7
    """
    end = text.rfind(space)
    while end > 0 and text[end - 1].isspace():
        end = text.rfind(space, 0, end)
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
# Generated corpora: what stands before the first colon of their names, and a function of the name.
GENERATED = {"markov": markov.Chain.parse} | dict.fromkeys(programs.LANGUAGES, programs.Programs.parse)
