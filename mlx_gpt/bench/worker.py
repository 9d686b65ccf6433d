"""Runs a contender in its own process: reads requests from stdin and writes responses to stdout, one per line.

The command is `python -m mlx_gpt.bench.worker NAME CASE.npz`. The process first writes one response: {"ok": version} if
the contender can run. A request is a JSON array, ["method", argument, ...]. Its response is {"ok": result} or
{"error": one line}.
"""

import importlib
import json
import resource
import sys
from pathlib import Path

from mlx_gpt.bench.case import Case
from mlx_gpt.bench.contenders import CONTENDERS


def serve(name: str, path: Path) -> None:
    """Builds a contender and answers requests until stdin ends. Returns at once if the contender cannot run.

    Besides the methods of the contender, a request may name "peak_resident".
    """
    (module, arguments), case = CONTENDERS[name], Case.load(path)
    if name != "mlxgpt" and (lacking := case.ours_alone()):
        _answer(error=f"does not support {', '.join(lacking)}")
        return
    try:
        contender = importlib.import_module(module).Contender(case, **arguments)
    except ModuleNotFoundError as error:
        _answer(error=f"needs {error.name}; pip install -e '.[bench]' installs it")
        return
    _answer(ok=contender.version)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            _answer(ok=peak_resident() if method == "peak_resident" else getattr(contender, method)(*arguments))
        except (RuntimeError, ValueError, MemoryError) as error:
            _answer(error=" ".join(str(error).split())[:300] or type(error).__name__)


def peak_resident() -> int:
    """Returns the peak resident memory of this process so far, in bytes."""
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _answer(**answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
