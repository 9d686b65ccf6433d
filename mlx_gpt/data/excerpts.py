"""Lines of the text that a checkpoint was trained on, as prompts."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mlx_gpt.config.presets import names_of
from mlx_gpt.data import library
from mlx_gpt.data.corpus import BUILT_IN, GENERATED, Corpus, open_corpus, split_spec
from mlx_gpt.errors import UserError

MAX_BYTES = 64 << 20  # a larger corpus is not read
SHORTEST, LONGEST = 6, 60  # characters of a line


def excerpts(specs: Sequence[str], fingerprint: str | None, count: int = 5) -> list[str]:
    """Returns lines of a corpus, evenly spaced over its beginning.

    The names of files in a checkpoint are not trusted: the text is shown only if it has the fingerprint of the text
    that the model was trained on. Folders and patterns are not searched, and nothing is downloaded.

    Args:
        specs: The corpus of the checkpoint, as in its settings.
        fingerprint: The fingerprint of the corpus, as in its header.
        count: Maximum number of lines.

    Returns:
        The lines. There are none if the corpus cannot be read here, exceeds MAX_BYTES, or has another fingerprint.
    """
    if not fingerprint or not all(_is_here(split_spec(spec)[0]) for spec in specs):
        return []
    try:
        corpus = open_corpus(specs)
        if corpus.num_bytes > MAX_BYTES or corpus.fingerprint != fingerprint:
            return []
        return _lines(corpus, count)
    except (UserError, OSError):
        return []


def _is_here(name: str) -> bool:
    if name in BUILT_IN or name.partition(":")[0] in GENERATED:
        return True
    return library.is_here(name) if name in names_of("corpus") else Path(name).expanduser().is_file()


def _lines(corpus: Corpus, count: int) -> list[str]:
    text = "".join(islice(corpus.texts(), 1))
    lines = dict.fromkeys(line.rstrip() for line in text.splitlines() if SHORTEST <= len(line.rstrip()) <= LONGEST)
    return list(lines)[:: max(len(lines) // count, 1)][:count]
