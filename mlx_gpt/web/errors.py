"""Errors as JSON, in the form that OpenAI's clients read."""

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

# Status -> headers of the response. Retry-After is in seconds.
HEADERS = {
    401: {"www-authenticate": "Bearer"},
    413: {"connection": "close"},
    429: {"retry-after": "1"},
    503: {"retry-after": "5"},
}


def cut(text: str, most: int = 60) -> str:
    """A text of a client for an error message or the log: at most `most` characters of it."""
    return text if len(text) <= most else f"{text[:most]}..."


class ApiError(Exception):
    """An error response: an HTTP status and a JSON body.

    Args:
        status: HTTP status code.
        message: What was received, what is allowed, and what to do next.
        param: The field of the request that caused the error. The body has at most 60 characters of it.
        code: The error as an identifier for programs, such as "invalid_value".
        more: Further fields of the body's `error` object.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **more):
        super().__init__(message)
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, "invalid_request_error")
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "server_error" if status >= 500 else kind,
                "param": param and cut(param),
                "code": code,
                **more,
            }
        }


def bad(name: str | None, message: str, code: str = "invalid_value", **more) -> ApiError:
    """The error for field `name` of a request, with status 400."""
    return ApiError(400, message, name, code, **more)


def refuse(error: ApiError, scope: Scope) -> Response:
    """The response for an error. The error's code is stored in scope["code"]; Guard adds it to the log line."""
    scope["code"] = error.body["error"]["code"]
    return Response(msgspec.json.encode(error.body), error.status, HEADERS.get(error.status), "application/json")


async def _on_api_error(request: Request, error: ApiError) -> Response:
    return refuse(error, request.scope)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    path = cut(ascii(request.url.path)[1:-1])
    messages = {404: f"no such route: {path}", 405: f"method {cut(request.method)} is not allowed for {path}"}
    message = messages.get(error.status_code, str(error.detail))
    response = refuse(ApiError(error.status_code, message, code="bad_route"), request.scope)
    response.headers.update(error.headers or {})
    return response


async def _on_fault(request: Request, error: Exception) -> Response:
    message = "internal error of the server; its log names the type of the error"
    return refuse(ApiError(500, message, code=type(error).__name__), request.scope)


# For Starlette(exception_handlers=...), so that all errors of an application have the same form.
HANDLERS = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_fault}
