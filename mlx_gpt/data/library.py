"""Named corpora that are files of others: their manifests, where they are found, how they are fetched and cleaned."""

import errno
import hashlib
import os
import re
import tomllib
from pathlib import Path

from mlx_gpt.config import cache_dir, names_of, resource_dir
from mlx_gpt.errors import BadFile, OutOfRoom, UserError

ABSENT = "downloaded when first used"


def manifest(name: str) -> dict:
    """What corpus/<name>.toml says: title and license; file, url, size in bytes, sha256 and clean where it has them."""
    return tomllib.loads((resource_dir("corpus") / f"{name}.toml").read_text("utf-8"))


def state(name: str) -> str:
    """Where the file of a named corpus is, in words."""
    facts = manifest(name)
    path = _local_file(facts)
    if not path:
        return ABSENT
    if _is_wrong(path, facts):
        return f"a wrong file (SHA-256) at {path}; remove it"
    return f"at {path}"


def fetched(name: str) -> Path:
    """The checked file of a named corpus, downloaded into the user's cache and cleaned if need be."""
    facts = manifest(name)
    path = _local_file(facts) or _downloaded(name, facts)
    if wrong := _is_wrong(path, facts):
        raise BadFile(
            f"corpus {name}: {path} has SHA-256 {wrong[:16]}..., {facts['sha256'][:16]}... is right; remove it"
        )
    return path


def _local_file(facts: dict) -> Path | None:
    """The file in MLXGPT_CORPUS_DIR or the user's cache, if it is there."""
    folders = [cache_dir() / "corpus"]
    if named := os.environ.get("MLXGPT_CORPUS_DIR"):
        folders.insert(0, Path(named).expanduser())
        if not folders[0].is_dir():
            raise UserError(f"MLXGPT_CORPUS_DIR={named}: no such folder; put {facts['file']} into one, or unset it")
    return next((path for folder in folders if (path := folder / facts["file"]).is_file()), None)


def _is_wrong(path: Path, facts: dict) -> str:
    """The SHA-256 of a file that should have another; nothing where it is right, or none is known."""
    found = hashlib.sha256(path.read_bytes()).hexdigest() if "sha256" in facts else ""
    return found if found != facts.get("sha256", "") else ""


def _downloaded(name: str, facts: dict) -> Path:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    folder, known = cache_dir() / "corpus", f"sha256:{facts['sha256']}" if "sha256" in facts else None
    raw = facts["file"] if "clean" not in facts else f"raw-{facts['file']}"
    try:
        path = Path(pooch.retrieve(facts["url"], known, raw, folder))
    except ValueError as error:
        raise BadFile(f"corpus {name}: the download of {facts['url']} is not the file expected: {error}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutOfRoom(f"corpus {name}: no space left in {folder}; free {facts['size']} bytes") from None
        raise UserError(
            f"corpus {name}: no network to download it; put {facts['url']} at {folder / facts['file']} "
            f"or into MLXGPT_CORPUS_DIR; {' and '.join(n for n in names_of('corpus') if 'url' not in manifest(n))} "
            "need no network"
        ) from None
    if "clean" not in facts:
        return path
    text = path.read_text("utf-8-sig")
    for step in facts["clean"]:
        text = CLEANING[step](text)
    if not text:
        raise BadFile(f"corpus {name}: nothing is left of {path} once cleaned; is it what {facts['url']} should be?")
    clean = folder / facts["file"]
    temporary = clean.with_suffix(".tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, clean)
    return clean


def strip_gutenberg(text: str) -> str:
    """What lies between the lines that Project Gutenberg puts around a book, each book ended by <|eos|>."""
    books = re.findall(
        r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK[^\n]*\n(.*?)(?=^\*\*\* ?END OF (?:THE|THIS) PROJECT)",
        text,
        re.DOTALL | re.MULTILINE | re.IGNORECASE,
    )
    return "<|eos|>".join(book.strip() + "\n" for book in books)


def unify_lines(text: str) -> str:
    """Lines end in one newline, without spaces before it; at most one empty line follows another."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text)


CLEANING = {"lines": unify_lines, "gutenberg": strip_gutenberg}
