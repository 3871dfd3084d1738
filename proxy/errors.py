"""Exceptions into OpenAI error bodies: the one table of status, type, code and headers.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

What `sessions` raises is data (see the tree in `sessions/errors.py`); only this file knows which status it
is. A 5xx that a retry would only repeat carries `x-should-retry: false`, which the OpenAI clients obey.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ImproperlyConfiguredException, ValidationException

from proxy.scope import request_scope
from sessions.errors import (
    Draining,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    NotStored,
    Overloaded,
    SessionError,
    StoreUnavailable,
)

_logger = structlog.get_logger("anaphora")

DRAIN_RETRY_AFTER_S = 5
STORE_RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499
"""Nobody receives it; it is what the log line and the metrics say of a client that left."""


class Unauthorized(Exception):
    """No API key, or none that is configured."""


class BodyTimeout(Exception):
    """The client took too long to send its body."""


class ClientDisconnected(Exception):
    """The client left before its answer; the answer goes nowhere."""


class CompletionTimeout(SessionError):
    """One reply took longer than `max_completion_time_s`."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The completion took longer than this server's limit of {limit_s:g} seconds.")


class ErrorFields(msgspec.Struct, frozen=True, kw_only=True):
    """message: for people. type: `invalid_request_error`, `rate_limit_error` or `server_error`. param: path of the
    field at fault, e.g. `messages[2].role`. code: what a program may test for.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every error.

    error: what went wrong.
    """

    error: ErrorFields


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An OpenAI error with its status and headers."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> ErrorBody:
        return ErrorBody(error=ErrorFields(message=self.message, type=self.type, param=self.param, code=self.code))


INVALID_HTTP = ErrorAnswer(400, "What was received is not an HTTP/1.1 request.", code="invalid_http")
HEAD_TIMEOUT = ErrorAnswer(408, "The request's headers did not arrive in time.", code="headers_timeout")
HEAD_TOO_LARGE = ErrorAnswer(431, "The request's headers are too large for this server.", code="headers_too_large")
TOO_MANY_CONNECTIONS = ErrorAnswer(
    503,
    "Too many connections to this server are open.",
    "server_error",
    code="too_many_connections",
    headers={"Retry-After": "1"},
)
"""The four that `proxy/wire.py` gives before there is a request."""


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def session_error_answer(error: SessionError) -> ErrorAnswer:
    """The status and body of whatever `sessions` raises on purpose; anything it did not mean is a 500."""
    message = str(error)
    match error:
        case InvalidRequest():
            return ErrorAnswer(400, error.message, param=error.param, code=error.code)
        case ModelNotFound():
            return ErrorAnswer(404, message, param="model", code="model_not_found")
        case NotStored():
            code = "previous_response_not_found" if error.param == "previous_response_id" else f"{error.kind}_not_found"
            return ErrorAnswer(404, message, param=error.param, code=code)
        case StoreUnavailable():
            headers = _retry_after(STORE_RETRY_AFTER_S)
            return ErrorAnswer(503, message, "server_error", code="store_unavailable", headers=headers)
        case Overloaded():
            headers = _retry_after(error.retry_after_s)
            return ErrorAnswer(429, message, "rate_limit_error", code="rate_limit_exceeded", headers=headers)
        case Draining():
            headers = _retry_after(DRAIN_RETRY_AFTER_S)
            return ErrorAnswer(503, message, "server_error", code="shutting_down", headers=headers)
        case CompletionTimeout():
            headers = {"x-should-retry": "false"}
            return ErrorAnswer(504, message, "server_error", code="completion_timeout", headers=headers)
        case EngineFailed():
            return ErrorAnswer(
                500, "The engine failed while working on this request.", "server_error", code="engine_failed"
            )
        case _:
            return internal_error_answer()


def internal_error_answer() -> ErrorAnswer:
    return ErrorAnswer(
        500, "The server had an error while processing your request.", "server_error", code="internal_error"
    )


_HTTP_SENTENCES = {
    400: ("The request could not be understood; is the body a JSON object?", None),
    404: ("Unknown request URL.", "unknown_url"),
    405: ("This URL does not answer to this method.", "method_not_allowed"),
    413: ("The request body is larger than this server accepts.", "request_too_large"),
}


def _http_error_answer(error: HTTPException) -> ErrorAnswer:
    """Litestar's own refusals. Its wording names handlers and internals, so ours is used."""
    if error.status_code >= 500:
        return internal_error_answer()
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        key = str(error.extra[0].get("key", ""))
        return ErrorAnswer(400, f"Invalid value for '{key}'.", param=key, code="invalid_value")
    message, code = _HTTP_SENTENCES.get(error.status_code, ("The request was refused.", None))
    return ErrorAnswer(error.status_code, message, code=code, headers=dict(error.headers or {}))


def _proxy_error_answer(error: Exception) -> ErrorAnswer:
    match error:
        case Unauthorized():
            headers = {"WWW-Authenticate": "Bearer"}
            return ErrorAnswer(401, "Incorrect API key provided.", code="invalid_api_key", headers=headers)
        case BodyTimeout():
            return ErrorAnswer(408, "The request body did not arrive in time.", code="body_timeout")
        case _:
            return ErrorAnswer(CLIENT_CLOSED_REQUEST, "The client closed the connection.", code="client_disconnected")


def _response(request: Request[Any, Any, Any], answer: ErrorAnswer) -> Response[ErrorBody]:
    request_scope(request.scope).fields["error"] = answer.code or answer.type
    return Response(
        answer.body(),
        status_code=answer.status,
        headers=dict(answer.headers),
        media_type="application/json",
    )


def _handle_session_error(request: Request[Any, Any, Any], error: SessionError) -> Response[ErrorBody]:
    return _response(request, session_error_answer(error))


def _handle_proxy_error(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    return _response(request, _proxy_error_answer(error))


def _handle_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorBody]:
    if error.status_code >= 500:
        return _handle_unexpected(request, error)
    return _response(request, _http_error_answer(error))


def _handle_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ErrorBody]:
    log_unexpected(request_scope(request.scope).request_id, error)
    return _response(request, internal_error_answer())


def log_unexpected(request_id: str, error: BaseException) -> None:
    """The traceback, without the exception's text: that may quote the prompt."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_qualname}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    _logger.error("unexpected error", request_id=request_id, error=type(error).__name__, frames=frames)


EXCEPTION_HANDLERS: dict[int | type[Exception], Any] = {
    SessionError: _handle_session_error,
    Unauthorized: _handle_proxy_error,
    BodyTimeout: _handle_proxy_error,
    ClientDisconnected: _handle_proxy_error,
    HTTPException: _handle_http_exception,
    ImproperlyConfiguredException: _handle_unexpected,
    Exception: _handle_unexpected,
}
