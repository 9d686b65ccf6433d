"""Finds run folders. `mlxgpt runs` and the dashboard both use it."""

import os
from collections.abc import Container, Iterator
from pathlib import Path

from mlx_gpt.paths import BEST, LATEST

METRICS, SETTINGS = "metrics.jsonl", "run.toml"
MARKS = (SETTINGS, METRICS, LATEST, BEST)  # a folder with one of these files is a run folder
MAX_DEPTH = 3  # levels of folders that are searched


def find_runs(path: Path, marks: Container[str] = MARKS, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Yields the run folders: `path` itself, and those below it. Nothing is raised for folders that cannot be read.

    Args:
        path: A run folder, or a folder that contains run folders. It may not exist.
        marks: A run folder is one that has a file of one of these names.
        depth: Levels below `path` that are searched. Links and hidden folders are not followed.
    """
    try:
        with os.scandir(path) as entries:
            found = sorted((entry.name, _kind(entry)) for entry in entries)
    except OSError:
        return
    if any(kind == "file" and name in marks for name, kind in found):
        yield path
    if depth:
        for name, kind in found:
            if kind == "folder" and not name.startswith("."):
                yield from find_runs(path / name, marks, depth - 1)


def _kind(entry: os.DirEntry) -> str:
    if entry.is_file(follow_symlinks=False):
        return "file"
    return "folder" if entry.is_dir(follow_symlinks=False) else ""
