"""Run folders: their names, their checkpoints, and the settings and the vocabulary that they contain."""

import itertools
from pathlib import Path

from mlx_gpt.config.presets import preset_of
from mlx_gpt.config.schema import Config
from mlx_gpt.data.corpus import corpus_name
from mlx_gpt.data.tokenizer import Tokenizer
from mlx_gpt.errors import UserError
from mlx_gpt.files import write_atomic
from mlx_gpt.paths import RUNS
from mlx_gpt.run.build import Start
from mlx_gpt.run.request import Request
from mlx_gpt.train.saving import BEST, LATEST


def folder_of(request: Request, start: Start) -> Path:
    """Returns the folder of the run that is resumed, or the path of a new folder, which is not created.

    A new folder is `request.out` if it is given. Otherwise it is the first of runs/<preset>-<corpus>,
    runs/<preset>-<corpus>-2, runs/<preset>-<corpus>-3, ... that does not exist. The name of another objective than
    cross-entropy is added to that of the corpus.

    Raises:
        UserError: `request.out` already holds another run.
    """
    if start.folder:
        return start.folder
    if request.out:
        require_new(request.out)
        return request.out
    config = start.header.config
    preset = Path(request.preset).stem if request.preset else preset_of(config.model) or "custom"
    objective = config.train.objective.removeprefix("cross-entropy")
    name = "-".join(filter(None, (preset, corpus_name(config.data.corpus), objective)))
    numbered = (RUNS / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(folder for folder in numbered if not folder.exists())


def require_new(folder: Path) -> None:
    """Raises UserError if the folder holds a checkpoint of a run."""
    if is_run(folder):
        raise UserError(f"{folder}: already holds a run; continue it with --resume, or choose another --out")


def is_run(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of a run."""
    return any((folder / name).exists() for name in (LATEST, BEST))


def set_aside(path: Path) -> Path:
    """Renames a corrupt checkpoint to NAME.corrupt-N, and returns its new path."""
    aside = next(p for n in itertools.count(1) if not (p := path.with_name(f"{path.name}.corrupt-{n}")).exists())
    return path.rename(aside)


def newest_run() -> Path:
    """The run folder whose checkpoints changed last. Raises UserError if there is none."""
    checkpoints = [p for p in RUNS.glob("*/*.safetensors") if p.name in (LATEST, BEST)]
    if not checkpoints:
        raise UserError(f"{RUNS}/: no checkpoints there; train a model with mlxgpt train, or name a checkpoint")
    return max(checkpoints, key=lambda p: p.stat().st_mtime).parent


def newest_checkpoint() -> Path:
    """The best checkpoint of the newest run. Raises UserError if there is no run."""
    return best_checkpoint(newest_run())


def best_checkpoint(folder: Path) -> Path:
    """The path of a run's best checkpoint, or of its latest one if no evaluation has saved a best one yet."""
    best = folder / BEST
    return best if best.exists() else folder / LATEST


def save_config(folder: Path, config: Config) -> None:
    """Writes all settings to run.toml in the folder. `--preset` can read this file."""
    write_atomic(folder / "run.toml", [config.to_toml().encode()])


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes a byte-pair vocabulary to the files that `--vocab` can read. Writes nothing for a character tokenizer."""
    for name, text in tokenizer.to_files().items():
        write_atomic(folder / name, [text.encode()])
