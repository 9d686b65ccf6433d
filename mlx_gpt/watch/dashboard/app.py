"""The ASGI application of the dashboard: the page, and the state of the runs as JSON.

The page asks for the runs every 0.7 seconds. Files are read only then: a dashboard that nobody looks at does nothing.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from mlx_gpt.watch.compare import NotEvaluated, comparison
from mlx_gpt.watch.dashboard.settings import sourced
from mlx_gpt.watch.runs import Run, Runs
from mlx_gpt.web.errors import HANDLERS, ApiError, bad
from mlx_gpt.web.guard import Access, Guard
from mlx_gpt.web.pages import page_routes

MAX_BYTES = 1 << 20  # bytes read for one request; the page asks again at once while there are more
MAX_COMPARED = 50


def make_app(runs: Runs, access: Access, log: Callable[[str], None]) -> Guard:
    """Makes the ASGI application, protected by the access rules.

    Args:
        runs: The runs to show.
        access: The access rules.
        log: Called with one line per request.
    """
    server = secrets.token_hex(8)  # stamps of another server mean nothing to this one
    turn = asyncio.Lock()  # one request at a time reads files

    async def list_runs(request: Request) -> Response:
        after, shown = _stamp(request), set(request.query_params.getlist("run")[:MAX_COMPARED])
        async with turn:
            # The first answer has the names and the states, which cost little. The page asks for the rest at once.
            await asyncio.to_thread(runs.refresh, MAX_BYTES if after else 0, shown)
            changed = [run.summary() for run in runs if run.stamp > after]
            found = {"server": server, "stamp": runs.stamp, "now": time.time(), "unread": runs.unread}
        return _json(found | {"paths": [str(path) for path in runs.paths], "runs": changed})

    async def points(request: Request) -> Response:
        async with turn:
            return _json(await asyncio.to_thread(_run(runs, request).points, _stamp(request)))

    async def details(request: Request) -> Response:
        run = _run(runs, request)
        settings = await asyncio.to_thread(sourced, run.settings)
        found = {"samples": list(run.samples), "alerts": list(run.alerts), "settings": settings}
        return _json({"run": run.name, "stamp": run.stamp} | found)

    async def compare(request: Request) -> Response:
        chosen = [_found(runs, name) for name in request.query_params.getlist("run")[:MAX_COMPARED]]
        try:
            return _json(await asyncio.to_thread(comparison, [run.record() for run in chosen]))
        except NotEvaluated as error:
            raise ApiError(409, str(error), code="not_evaluated") from None

    async def plotly(_request: Request) -> Response:
        # The browser keeps the file, of 5 MB, and its compiled form for the next visit.
        return FileResponse(plotly_js(), headers={"cache-control": "max-age=86400"}, media_type="text/javascript")

    page = page_routes(files(__package__) / "page")
    routes = [
        *page,
        Route("/plotly.js", plotly),
        Route("/api/runs", list_runs),
        Route("/api/points", points),
        Route("/api/details", details),
        Route("/api/compare", compare),
    ]
    open_paths = {route.path for route in page} | {"/plotly.js"}
    return Guard(Starlette(routes=routes, exception_handlers=HANDLERS), access, log, open_paths)


def plotly_js() -> Path:
    """The path of plotly.js in the installed package plotly. The package itself is not imported: that is slow.

    Raises ModuleNotFoundError if it is not installed.
    """
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


def _run(runs: Runs, request: Request) -> Run:
    return _found(runs, request.query_params.get("run", ""))


def _found(runs: Runs, name: str) -> Run:
    """The run with this name. Names are looked up among the runs that were found, and never used as paths."""
    run = runs.get(name)
    if run is None:
        raise bad("run", "there is no such run below the folders that are watched", "no_such_run")
    return run


def _stamp(request: Request) -> int:
    text = request.query_params.get("after", "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise bad("after", "after is a stamp of an earlier response, a whole number")
    return int(text)


def _json(content: Any) -> Response:
    # msgspec refuses halves of characters, which a damaged file may hold. json escapes them.
    return Response(json.dumps(content, allow_nan=False, separators=(",", ":")), media_type="application/json")
