"""`mlxgpt pipeline`: runs several commands of mlxgpt in a row, as one file describes them."""

import dataclasses
import hashlib
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from mlx_gpt import parse, run
from mlx_gpt.cli.options import folder_option, note
from mlx_gpt.config.presets import resolve
from mlx_gpt.errors import BadFile, UserError
from mlx_gpt.files import FolderLock, make_folder, write_atomic

RUNS = ("train", "rl")  # the commands that train a run, in a folder of its own
COMMANDS = (*RUNS, "eval-code", "eval")
UNSAVED = ("--log=", "--alert=")  # options of these commands that a run folder does not keep
# Options that the pipeline gives itself, or that make the command no stage.
NOT_ALLOWED = {"out", "resume", "fine_tune", "checkpoint", "plan", "json", "as_json", "join", "address"}
# Parameters of commands that change nothing of what is trained.
NOT_SETTINGS = ("plan", "as_json", "logs", "alert", "watched")
STATE = "pipeline.json"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A command of a pipeline.

    Attributes:
        name: Its folder or file in the folder of the pipeline, such as "2-rl".
        command: One of COMMANDS.
        options: Its options, as arguments of the command line.
    """

    name: str
    command: str
    options: list[str]

    @property
    def key(self) -> str:
        """A hash of the command and its options."""
        return hashlib.sha256(json.dumps([self.command, self.options]).encode()).hexdigest()[:16]

    def arguments(self, folder: Path, before: Path | None) -> list[str]:
        """The arguments of mlxgpt.

        Args:
            folder: The folder of the pipeline.
            before: The run of the last stage that trains one, before this one.
        """
        own = folder / self.name
        given = [str(before)] if before and self.command != "train" else []
        if self.command not in RUNS:
            return [self.command, *given, *self.options, "--json"]
        if run.is_run(own):
            return ["train", "--resume", str(own), *(o for o in self.options if o.startswith(UNSAVED))]
        given = ["--fine-tune", str(before)] if before and self.command == "train" else given
        return [self.command, *given, *self.options, "--out", str(own)]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="DIR", callback=folder_option, help="Folder of all stages.  [default: runs/NAME of the file]"
)
@click.option("--plan", is_flag=True, help="Print the commands, and run none.")
def pipeline_command(file, out, plan):
    """Run train, rl, eval and eval-code in a row, as FILE describes them.

    \b
    [[stage]]
    command = "train"
    preset = "model-s"
    corpus = ["stdlib", "code-patterns:2000"]
    minutes = 30

    \b
    [[stage]]
    command = "rl"
    set = ["rl.kl_weight=0.05"]

    \b
    [[stage]]
    command = "eval-code"
    language = "python"

    The keys of a stage are the options of its command, and are checked before the first stage begins. A stage begins
    with the run of the stage before it. If the pipeline is interrupted or fails, the same command continues it where it
    stopped.
    """
    stages = read_stages(file)
    folder = out or Path("runs") / file.stem
    if plan:
        for stage, before in _with_runs(stages, folder):
            click.echo(shlex.join(["mlxgpt", *stage.arguments(folder, before)]))
        return
    make_folder(folder)
    lock = FolderLock(folder)
    try:
        for stage, before in _with_runs(stages, folder):
            _carry_out(stage, folder, before)
    finally:
        lock.release()
    note(f"{folder}: all {len(stages)} stages are complete")


def read_stages(path: Path) -> list[Stage]:
    """Reads the stages of a file, and checks the options of each.

    Raises:
        UserError: There is no such file, or a stage has an unknown command or option.
        BadFile: The file is not valid.
    """
    data = parse.parse_toml(parse.read_bytes(path), str(path))
    rows = data.get("stage")
    if set(data) != {"stage"} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadFile(f"{path}: has no stages; write a table [[stage]] with a command for each, and nothing else")
    return [_stage(path, number, dict(row)) for number, row in enumerate(rows, 1)]


def _stage(path: Path, number: int, row: dict[str, Any]) -> Stage:
    command, place = row.pop("command", None), f"{path}: stage {number}"
    if command not in COMMANDS:
        raise UserError(f"{place}: command={command!r} is not allowed; choose from {', '.join(COMMANDS)}")
    if number == 1 and command != "train":
        raise UserError(f"{place}: {command} needs a model; begin with a stage whose command is train")
    options = []
    for name, value in row.items():
        if name.replace("-", "_") in NOT_ALLOWED:
            raise UserError(f"{place}: {name} cannot be given for a stage; leave it out")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict | list):
                raise UserError(f"{place}: {name}={one!r} is not allowed; give text, a number, true or a list")
            flag = f"--{name.replace('_', '-')}"
            options += [flag] * (one is True) if isinstance(one, bool) else [f"{flag}={one}"]
    _require_options(place, command, options)
    return Stage(name=f"{number}-{command}", command=command, options=options)


def _require_options(place: str, command: str, options: list[str]) -> None:
    """Raises UserError if the command does not accept the options or their values. The command is not run."""
    group = click.get_current_context().parent.command
    try:
        loaded = group.load(command)
        context = loaded.make_context(f"mlxgpt {command}", list(options), parent=click.get_current_context().parent)
        if check := CHECKS.get(command):
            check({name: value for name, value in context.params.items() if name not in NOT_SETTINGS})
    except click.UsageError as error:
        raise UserError(f"{place}: {error.format_message().rstrip('.')}; see mlxgpt {command} --help") from None
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _check_train(options: dict[str, Any]) -> None:
    """Checks the settings of a stage."""
    from mlx_gpt.cli.train import request_of

    request = request_of(**options)
    resolve(request.preset, request.recipe, request.settings, request.base)


def _check_rl(options: dict[str, Any]) -> None:
    """Checks the settings of a stage, its reward and its prompts."""
    from mlx_gpt.cli.rl import request_of
    from mlx_gpt.run.rl import require_rewards

    require_rewards(request_of(**options | {"checkpoint": Path("the run before")}))


def _check_eval_code(options: dict[str, Any]) -> None:
    """Checks the settings of a stage and its problems."""
    from mlx_gpt.code.settings import Settings

    names = {field.name for field in dataclasses.fields(Settings)}
    Settings(**{name: value for name, value in options.items() if name in names}).open_problems()


# Command -> checks the values of its options.
CHECKS = {"train": _check_train, "rl": _check_rl, "eval-code": _check_eval_code}


def _with_runs(stages: list[Stage], folder: Path):
    """Yields each stage with the run folder of the last stage before it that trains."""
    before = None
    for stage in stages:
        yield stage, before
        before = folder / stage.name if stage.command in RUNS else before


def _carry_out(stage: Stage, folder: Path, before: Path | None) -> None:
    """Runs a stage that is not complete, and notes that it is.

    Raises:
        UserError: The stage was completed or begun with other options.
    """
    done = _state(folder)
    known = done.get(stage.name)
    if known is not None and known.get("key") != stage.key:
        raise UserError(f"{folder / stage.name}: was made with other options; give them as they were, or another --out")
    if known is not None and known.get("complete"):
        note(f"{stage.name}: complete")
        return
    if before and not run.is_run(before):
        raise UserError(f"{stage.name}: needs the run {before}, which is missing; restore it, or give another --out")
    _save(folder, done | {stage.name: {"key": stage.key, "complete": False}})
    arguments = stage.arguments(folder, before)
    note(f"{stage.name}: {shlex.join(['mlxgpt', *arguments])}")
    code, output = _run(arguments, capture=stage.command not in RUNS)
    if code:
        note(f"{stage.name}: ended with exit code {code}; the same command continues the pipeline")
        sys.exit(code)
    if stage.command not in RUNS:
        write_atomic(folder / f"{stage.name}.json", [output])
        click.echo(output.decode(), nl=False)
    _save(folder, done | {stage.name: {"key": stage.key, "complete": True}})


def _state(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads what is known of the stages, by their names. Raises BadFile if the file is not one of a pipeline."""
    path = folder / STATE
    found = parse.read_object(path) if path.exists() else {}
    if not all(isinstance(stage, dict) for stage in found.values()):
        raise BadFile(f"{path}: does not have an object for each stage; remove it to continue from the runs there")
    return found


def _save(folder: Path, state: dict[str, Any]) -> None:
    write_atomic(folder / STATE, [json.dumps(state, indent=2).encode()])


def _run(arguments: list[str], capture: bool) -> tuple[int, bytes]:
    """Runs mlxgpt in a process of its own. Returns its exit code, and what it printed if `capture`.

    A signal to this process is passed on. Ctrl-C reaches the process by itself, which saves its run before it ends.
    """
    child = subprocess.Popen([sys.executable, "-m", "mlx_gpt", *arguments], stdout=subprocess.PIPE if capture else None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: child.send_signal(received))
    signal.signal(signal.SIGINT, lambda *_: None)
    output, _ = child.communicate()
    return (child.returncode if child.returncode >= 0 else 128 - child.returncode), output or b""
