"""The request for a run: the options of the command line, or the arguments of `mlx_gpt.train`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_gpt.config.presets import known_setting, require_one_length
from mlx_gpt.errors import UserError

Note = Callable[[str], None]  # called with one line for each thing the user should know

# The value of `Request.resume` that means the newest run.
NEWEST = "newest"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The request for a run.

    Attributes:
        preset: Name or path of a preset.
        recipe: Name or path of a recipe.
        settings: Settings by dotted name, such as {"train.iters": 100}. They override preset and recipe.
        out: Folder of the run; None for a new folder in runs/.
        resume: Checkpoint file or run folder to resume, or NEWEST. None does not resume.
        fine_tune: Checkpoint whose weights a new run starts from. None does not fine-tune.
        default_corpus: The corpus if neither settings, preset, recipe nor checkpoint name one; () for `data.corpus`'s
            default.
        defaults: Settings that replace the defaults, by dotted name.
        with_rewards: Whether only a run that learns from rewards may be resumed.

    Raises:
        UserError: Both `resume` and `fine_tune` are given, or a name is empty.
    """

    preset: str | None = None
    recipe: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    resume: str | None = None
    fine_tune: Path | None = None
    default_corpus: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    with_rewards: bool = False

    def __post_init__(self):
        for name in ("preset", "recipe", "resume"):
            if getattr(self, name) == "":
                raise UserError(f"--{name} is empty; give a value, or leave it out")
        if self.resume is not None and self.fine_tune:
            raise UserError(
                "--resume continues a run, --fine-tune starts a new run from a checkpoint's weights; give one of them"
            )

    @property
    def base(self) -> dict[str, Any]:
        """The settings that replace the defaults, by dotted name."""
        return self.defaults | ({"data.corpus": self.default_corpus} if self.default_corpus else {})

    def note_corpus(self, corpus: tuple[str, ...], note: Note) -> None:
        """Tells the user if `corpus`, the one of the run, is the default corpus of this request."""
        if corpus == self.default_corpus and "data.corpus" not in self.settings:
            note(f"training on {', '.join(corpus)}; --corpus names another text")


def ignore(line: str) -> None:
    """A Note that discards its lines."""


def settings_of(given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Collects pairs of a dotted name and a value into a dictionary. Old names are replaced by the current ones.

    Raises:
        UserError: There is no such setting, a setting occurs twice, or both `train.iters` and `train.tokens` are given.
    """
    settings: dict[str, Any] = {}
    for name, value in given:
        key, _ = known_setting(name)
        if key in settings:
            raise UserError(f"{key} is given twice, as {settings[key]} and {value}; give it once")
        settings[key] = value
    require_one_length(settings.get("train.iters"), settings.get("train.tokens"))
    return settings


def specs_of(corpus: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Converts one or several corpus names, files, folders or patterns to a tuple of strings."""
    return (str(corpus),) if isinstance(corpus, str | Path) else tuple(map(str, corpus))


def network_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Selects the settings of the network: {"model.n_head": 4, "train.iters": 9} gives {"n_head": 4}.

    `model.dropout` is left out, since a run may change it without changing the network.
    """
    given = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    return {k: v for k, v in given.items() if k != "dropout"}
