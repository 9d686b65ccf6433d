"""Where text comes from: a name, a file, several files or a folder of UTF-8 text, as a list of documents."""

import errno
import hashlib
import os
import sysconfig
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_gpt.config import cache_dir, names_of, resource_dir
from mlx_gpt.errors import BadFile, OutOfRoom, UserError

# Folders of the standard library that are tests or programs rather than library source.
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Text in documents, none of them empty."""

    name: str
    documents: list[str]

    def fingerprint(self) -> str:
        """SHA-256 of the documents and their borders."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def open_corpus(specs: Sequence[str]) -> Corpus:
    """Reads corpus names, files and folders, in the order given."""
    for spec in specs:
        if specs.count(spec) > 1:
            raise UserError(f"corpus {spec} is given {specs.count(spec)} times; give it once")
    documents = [d for spec in specs for d in _documents(spec)]
    if not documents:
        raise BadFile(f"corpus {', '.join(specs)}: no text in it; give a file or folder of UTF-8 text")
    return Corpus(name=corpus_name(specs), documents=documents)


def corpus_name(specs: Sequence[str]) -> str:
    """A short name for a run folder."""
    first = specs[0] if specs[0] in names_of("corpus") else Path(specs[0]).resolve().stem
    return first + (f"-and-{len(specs) - 1}" if len(specs) > 1 else "")


def list_corpora() -> list[dict]:
    """Each named corpus with its title, licence, size in bytes and state."""
    rows = []
    for name in names_of("corpus"):
        manifest = _manifest(name)
        path = _local_file(manifest) if "url" in manifest else None
        state = "built in" if "url" not in manifest else f"at {path}" if path else "downloaded when first used"
        if path and _sha256(path) != manifest["sha256"]:
            state = f"a wrong file (SHA-256) at {path}; remove it"
        size = manifest.get("size") or sum(len(d.encode()) for d in BUILT_IN[name]())
        rows.append(
            {
                "name": name,
                "title": manifest["title"],
                "license": manifest["license"],
                "bytes": size,
                "state": state,
                "network": "url" in manifest and not path,
            }
        )
    return rows


def _documents(spec: str) -> list[str]:
    if spec in names_of("corpus"):
        return BUILT_IN[spec]() if spec in BUILT_IN else [_read_text(_fetched(spec))]
    path = Path(spec).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
        if not files:
            raise BadFile(f"corpus {spec}: an empty folder; put UTF-8 text files into it")
        return [text for text in map(_read_text, files) if text]
    if not path.exists():
        raise UserError(
            f"corpus {spec!r}: no such name or file; choose from {', '.join(names_of('corpus'))}, or give a path"
        )
    if path.is_char_device() or path.is_block_device():
        raise BadFile(f"corpus {spec}: a device; give a file or folder of UTF-8 text")
    text = _read_text(path)
    if not text:
        raise BadFile(f"corpus {spec}: an empty file; give UTF-8 text")
    return [text]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"corpus {path}: {error.strerror}; give a readable file of UTF-8 text") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"corpus {path}: byte {error.start} is 0x{data[error.start]:02x}, not UTF-8 text") from None


def _pydocs() -> list[str]:
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items()) if text]


def _stdlib() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts))
    return [text for text in (p.read_text("utf-8", errors="ignore") for p in files) if text]


BUILT_IN = {"pydocs": _pydocs, "stdlib": _stdlib}


def _manifest(name: str) -> dict:
    return tomllib.loads((resource_dir("corpus") / f"{name}.toml").read_text("utf-8"))


def _local_file(manifest: dict) -> Path | None:
    """The file in MLXGPT_CORPUS_DIR or the user's cache, if it is there."""
    folders = [cache_dir() / "corpus"]
    if named := os.environ.get("MLXGPT_CORPUS_DIR"):
        folders.insert(0, Path(named).expanduser())
        if not folders[0].is_dir():
            raise UserError(f"MLXGPT_CORPUS_DIR={named}: no such folder; put {manifest['file']} into one, or unset it")
    paths = (folder / manifest["file"] for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _fetched(name: str) -> Path:
    """The checked file of a named corpus, downloaded into the user's cache if need be."""
    manifest = _manifest(name)
    path = _local_file(manifest) or _download(name, manifest)
    found = _sha256(path)
    if found != manifest["sha256"]:
        raise BadFile(
            f"corpus {name}: {path} has SHA-256 {found[:16]}..., {manifest['sha256'][:16]}... is right; remove the file"
        )
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _download(name: str, manifest: dict) -> Path:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    folder = cache_dir() / "corpus"
    offline = [n for n in names_of("corpus") if n in BUILT_IN]
    try:
        return Path(pooch.retrieve(manifest["url"], f"sha256:{manifest['sha256']}", manifest["file"], folder))
    except ValueError as error:
        raise BadFile(f"corpus {name}: the download of {manifest['url']} is not the file expected: {error}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutOfRoom(f"corpus {name}: no space left in {folder}; free {manifest['size']} bytes") from None
        raise UserError(
            f"corpus {name}: no network to download it; put {manifest['url']} at {folder / manifest['file']} "
            f"or into MLXGPT_CORPUS_DIR; {' and '.join(offline)} need no network"
        ) from None
