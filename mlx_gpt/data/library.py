"""Named corpora that are files of others: their manifests, where they are found, how they are fetched and cleaned."""

import hashlib
import os
import re
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlx_gpt.config.presets import names_of
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import convert_os_errors, make_folder, write_atomic
from mlx_gpt.paths import cache_dir, resource_dir

ABSENT = "downloaded when first used"
DOCUMENT_END = "<|eos|>"  # between the parts of a corpus, and wherever else a text holds it
AT_ONCE = 8  # downloads


def manifest(name: str) -> dict:
    """What corpus/<name>.toml says: title and license; of what is downloaded also file, size in bytes, sha256 and url.

    Where it has `parts`, a name and SHA-256 each, the file is made of them: each, at the url and its name, is cleaned
    by the steps of `clean`, and they are joined as documents.
    """
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
    """The SHA-256 of a file that should have another; nothing where it is right."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    return found if found != facts["sha256"] else ""


def _downloaded(name: str, facts: dict) -> Path:
    """The file, made in the user's cache of what is at its url. Parts that are there already are not fetched again."""
    folder = cache_dir() / "corpus"
    raw, path = folder / "downloads", folder / facts["file"]
    parts = facts.get("parts", {"": facts["sha256"]})
    make_folder(raw)
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            fetched = list(pool.map(lambda part: _retrieved(name, facts["url"] + part, parts[part], raw), parts))
    except OSError as error:
        if error.errno is not None:  # the disk's, not the network's
            with convert_os_errors(raw):
                raise
        source = f"{facts['file']} of another machine's cache" if "parts" in facts else facts["url"]
        raise UserError(
            f"corpus {name}: the download failed ({type(error).__name__}); without a network put {source} at {path} "
            f"or into MLXGPT_CORPUS_DIR; {' and '.join(n for n in names_of('corpus') if 'url' not in manifest(n))} "
            "need none"
        ) from None
    texts = [file.read_bytes().decode("utf-8-sig") for file in fetched]
    for step in facts.get("clean", []):
        texts = list(map(CLEANING[step], texts))
    write_atomic(path, [DOCUMENT_END.join(texts).encode()])
    return path


def _retrieved(name: str, url: str, sha256: str, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", sha256[:16], folder))
    except ValueError as error:
        raise BadFile(f"corpus {name}: the download of {url} is not the file expected: {error}") from None


def strip_gutenberg(text: str) -> str:
    """The book alone, without what Project Gutenberg puts before and behind it, and the line of who typed it."""
    end = GUTENBERG_END.search(text, GUTENBERG_BEGIN.search(text).end())
    *_, begin = GUTENBERG_BEGIN.finditer(text, 0, end.start())
    return GUTENBERG_CREDIT.sub("", text[begin.end() : end.start()].strip()) + "\n"


def unify_lines(text: str) -> str:
    """Lines end in one newline, without spaces before it; at most one empty line follows another."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text)


# Files of before 2002 have the small print alone; the last such line before the book ends what is not the book.
GUTENBERG_BEGIN = re.compile(r"^(?:\*\*\* ?START OF|\*END.*SMALL PRINT).*$", re.MULTILINE | re.IGNORECASE)
GUTENBERG_END = re.compile(r"^(?:\*\*\* ?END OF|(?:The )?End of Project Gutenberg).*$", re.MULTILINE | re.IGNORECASE)
GUTENBERG_CREDIT = re.compile(r"^(?:(?:This )?e-?text was prepared|E-text prepared|Produced) by(?:.+\n)+\n")
CLEANING = {"lines": unify_lines, "gutenberg": strip_gutenberg}
