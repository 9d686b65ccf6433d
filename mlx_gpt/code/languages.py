"""The table of programming languages."""

from mlx_gpt.code.language import Language
from mlx_gpt.code.python import Python
from mlx_gpt.code.rust import Rust
from mlx_gpt.config.table import lookup

LANGUAGES: dict[str, Language] = {language.name: language for language in (Python(), Rust())}


def language_of(name: str) -> Language:
    """Returns the language of a name, a key of LANGUAGES.

    Raises:
        UserError: There is no such language.
    """
    return lookup(LANGUAGES, name, "language")
