"""The files of a web page: its own folder, and the style sheet that all pages share."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# Suffix of a file -> its media type. Other files of a page are not served.
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def page_routes(folder: Traversable) -> list[Route]:
    """The routes of a page. The files are read once, here.

    Args:
        folder: The folder of the page. Its index.html is served at /, and every other file at its own name, such as
            /page.css. The files of web/assets/ are served at their names too.
    """
    found = [file for place in (files(__package__) / "assets", folder) for file in place.iterdir()]
    return [_route(file) for file in sorted(found, key=lambda file: file.name) if _suffix(file) in MEDIA_TYPES]


def _suffix(file: Traversable) -> str:
    return f".{file.name.rpartition('.')[2]}"


def _route(file: Traversable) -> Route:
    content, kind = file.read_bytes(), MEDIA_TYPES[_suffix(file)]

    async def show(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route("/" if file.name == "index.html" else f"/{file.name}", show)
