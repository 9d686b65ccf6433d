"""Other programs that show the reports of a run: `--log NAME`.

To add one, write a module with a class that implements `Sink` in protocol.py, and add it to SINKS.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_gpt.errors import UserError
from mlx_gpt.watch.sinks.protocol import Line, Sink

# Name -> its module, its class, and the package that it needs. The extra of mlxgpt has the name of the sink.
SINKS = {
    "tensorboard": ("mlx_gpt.watch.sinks.tensorboard", "TensorBoard", "tensorboardX"),
    "wandb": ("mlx_gpt.watch.sinks.wandb", "WeightsAndBiases", "wandb"),
    "trackio": ("mlx_gpt.watch.sinks.trackio", "Trackio", "trackio"),
}


def require_sinks(names: tuple[str, ...]) -> None:
    """Raises UserError if there is no such sink, if one is named twice, or if the package that it needs is missing."""
    for name in names:
        if name not in SINKS:
            raise UserError(f"--log {name}: there is no such log; choose from {', '.join(SINKS)}")
        if names.count(name) > 1:
            raise UserError(f"--log {name} is given twice; give it once")
        package = SINKS[name][2]
        try:
            import_module(package)
        except ImportError:
            raise UserError(f"--log {name} needs {package}; install it with: pip install -e '.[{name}]'") from None


class GuardedSink:
    """A sink whose failures end no run: after the first one, it is off, and `note` gets one line.

    Args:
        name: A key of SINKS.
        note: Called with the line.
        folder, settings, first: The arguments of the sink.
    """

    def __init__(self, name: str, note: Callable[[str], None], folder: Path, settings: Mapping[str, Any], first: int):
        self._name, self._note = name, note
        self._sink: Sink | None = None
        module, made, _ = SINKS[name]
        self._try(lambda: setattr(self, "_sink", getattr(import_module(module), made)(folder, settings, first)))

    def add(self, line: Line) -> None:
        if self._sink:
            self._try(lambda: self._sink.add(line))

    def close(self) -> None:
        if self._sink:
            self._try(self._sink.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # whatever a library of others raises
            self._sink = None
            reason = " ".join(str(error).split()) or type(error).__name__
            self._note(f"--log {self._name} is off from now on, the run continues: {reason}")
