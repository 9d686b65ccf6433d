"""Named corpora that are downloaded: reads their manifests, finds or downloads their files, and cleans the text.

The file of a corpus is looked up in the folder MLXGPT_CORPUS_DIR (an environment variable), then in the user's cache.
If it is in neither, it is downloaded into the cache. Its SHA-256 is checked each time the corpus is opened.
"""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mlx_gpt.config.presets import names_of
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import convert_os_errors, make_folder, write_atomic
from mlx_gpt.parse import read_toml
from mlx_gpt.paths import cache_dir, resource_dir

ABSENT = "downloaded when first used"
DOCUMENT_END = "<|eos|>"  # separates documents in a text file
MAX_DOWNLOADS = 8  # maximum number of concurrent downloads


def manifest(name: str) -> dict:
    """Reads the manifest of a named corpus, corpus/<name>.toml.

    Every manifest has `title` and `license`. The manifest of a downloaded corpus also has `file` (the name of its
    file), `size` in bytes, `sha256` and `url`. Two keys are optional:

    - `parts` is a table of names and SHA-256 hashes. The file is then built from one download for each part, at `url`
      followed by the part's name. Each part becomes a document of the file.
    - `clean` is a list of keys of CLEANING. These functions are applied to each part in order.
    """
    return read_toml(resource_dir("corpus") / f"{name}.toml")


def state(name: str) -> str:
    """Returns a phrase that says where the file of a downloaded corpus is, for `mlxgpt corpus list`."""
    facts = manifest(name)
    path = _local_file(facts)
    if not path:
        return ABSENT
    if _wrong_hash(path, facts):
        return f"wrong SHA-256 at {path}; remove the file"
    return f"at {path}"


def is_here(name: str) -> bool:
    """Whether the file of a downloaded corpus is on this machine."""
    return _local_file(manifest(name)) is not None


def fetch(name: str) -> Path:
    """Returns the path of the file of a downloaded corpus. Downloads and cleans it first if there is no such file.

    Raises:
        BadFile: if the file or a download has the wrong SHA-256.
        UserError: if the download fails, or if MLXGPT_CORPUS_DIR is not a folder.
    """
    facts = manifest(name)
    path = _local_file(facts) or _download(name, facts)
    if wrong := _wrong_hash(path, facts):
        raise BadFile(
            f"corpus {name}: {path} has SHA-256 {wrong[:16]}..., expected {facts['sha256'][:16]}...; remove the file"
        )
    return path


def _local_file(facts: dict) -> Path | None:
    """Returns the path of the file in MLXGPT_CORPUS_DIR or in the user's cache, or None if it is in neither."""
    folders = [cache_dir() / "corpus"]
    if variable := os.environ.get("MLXGPT_CORPUS_DIR"):
        folders.insert(0, Path(variable).expanduser())
        if not folders[0].is_dir():
            raise UserError(
                f"MLXGPT_CORPUS_DIR={variable}: no such folder; create it with {facts['file']} in it, or unset it"
            )
    return next((path for folder in folders if (path := folder / facts["file"]).is_file()), None)


def _wrong_hash(path: Path, facts: dict) -> str:
    """Returns the file's SHA-256 if it differs from the manifest's, else an empty string."""
    with convert_os_errors(path), open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()  # reads the file in small parts
    return found if found != facts["sha256"] else ""


def _download(name: str, facts: dict) -> Path:
    """Downloads the file, or the parts that it is built from, and writes the file to the user's cache.

    The downloads are cached before they are cleaned, so a second attempt downloads only the missing parts.
    """
    folder = cache_dir() / "corpus"
    raw, path = folder / "downloads", folder / facts["file"]
    parts = facts.get("parts", {"": facts["sha256"]})  # without parts, `url` itself is the only download
    make_folder(raw)
    try:
        with ThreadPoolExecutor(MAX_DOWNLOADS) as pool:
            files = list(pool.map(lambda part: _retrieve(name, facts["url"] + part, parts[part], raw), parts))
    except OSError as error:
        # requests raises errors of the network as OSError without an errno. One with an errno is an error of the disk.
        if error.errno is not None:
            with convert_os_errors(raw):
                raise
        source = f"{facts['file']} of another machine's cache" if "parts" in facts else facts["url"]
        raise UserError(
            f"corpus {name}: the download failed ({type(error).__name__}); without a network put {source} at {path} "
            f"or into MLXGPT_CORPUS_DIR; {' and '.join(n for n in names_of('corpus') if 'url' not in manifest(n))} "
            "need no download"
        ) from None
    texts = [file.read_bytes().decode("utf-8-sig") for file in files]
    for step in facts.get("clean", []):
        texts = list(map(CLEANING[step], texts))
    write_atomic(path, [DOCUMENT_END.join(texts).encode()])
    return path


def _retrieve(name: str, url: str, sha256: str, folder: Path) -> Path:
    """Downloads one file into `folder`, unless it is there already. Its name is the start of its SHA-256.

    Raises:
        BadFile: if the downloaded file has another SHA-256.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", sha256[:16], folder))
    except ValueError as error:
        raise BadFile(f"corpus {name}: the download of {url} is not the file expected: {error}") from None


def strip_gutenberg(text: str) -> str:
    """Removes Project Gutenberg's header and footer, and the first paragraph if it credits the transcribers."""
    end = GUTENBERG_END.search(text, GUTENBERG_BEGIN.search(text).end())
    *_, begin = GUTENBERG_BEGIN.finditer(text, 0, end.start())
    return GUTENBERG_CREDIT.sub("", text[begin.end() : end.start()].strip()) + "\n"


def unify_lines(text: str) -> str:
    """Converts CRLF to LF, removes spaces and tabs at the ends of lines, and reduces runs of empty lines to one."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text)


# A book begins after a START line or after the line that ends the license ("small print"). Files from before 2002 have
# only the latter. Newer files can have both, so strip_gutenberg uses the last match before the end of the book.
GUTENBERG_BEGIN = re.compile(r"^(?:\*\*\* ?START OF|\*END.*SMALL PRINT).*$", re.MULTILINE | re.IGNORECASE)
GUTENBERG_END = re.compile(r"^(?:\*\*\* ?END OF|(?:The )?End of Project Gutenberg).*$", re.MULTILINE | re.IGNORECASE)
GUTENBERG_CREDIT = re.compile(r"^(?:(?:This )?e-?text was prepared|E-text prepared|Produced) by(?:.+\n)+\n")
CLEANING = {"lines": unify_lines, "gutenberg": strip_gutenberg}
