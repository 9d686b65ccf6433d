"""The protocol of sinks, and the numbers and texts of a report."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Line = Mapping[str, Any]  # an object of metrics.jsonl


class Sink(Protocol):
    """Receives the reports of one process of a run. It may raise any exception, see GuardedSink.

    It imports its package when it is made, because some packages change environment variables.

    Args:
        folder: The run folder.
        settings: The settings of the run as nested dictionaries.
        first: The step at which this process starts; 0 for a new run. Reports of later steps of an earlier process are
            outdated.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], first: int): ...

    def add(self, line: Line) -> None:
        """Receives a report. Must not wait for a network or a disk."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def scalars(line: Line) -> dict[str, float]:
    """Returns the finite numbers of a report by name, without its step.

    A name is the kind of the report and the name of the field, as in eval/val_loss. The fields of a dictionary follow
    its name, as in step/rule_lrs/muon.
    """
    found = {}
    for name, value in line.items():
        for path, number in _numbers(name, value):
            if name != "step" and math.isfinite(number):
                found[f"{line['report']}/{path}"] = number
    return found


def texts(line: Line) -> dict[str, str]:
    """Returns the texts of samples and alerts by name: sample/text, and alert/KIND."""
    if line["report"] == "sample":
        return {"sample/text": line["text"]}
    if line["report"] == "alert":
        return {f"alert/{line['kind']}": f"since step {line['since']}: {line['evidence']}; {line['advice']}"}
    return {}


def _numbers(name: str, value: Any):
    if type(value) in (int, float):
        yield name, value
    elif isinstance(value, Mapping):
        yield from ((f"{name}/{key}", each) for key, each in value.items() if type(each) in (int, float))
