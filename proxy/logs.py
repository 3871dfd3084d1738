"""Logging: its configuration, the request id on responses, one line per finished request. Never prompt text.

Replies are logged when they end, not when they begin: a stream's line comes after its last byte, or when its
client left.
"""

import asyncio
import logging
import os
import sys
import time
from typing import Any, Final

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from proxy.errors import CLIENT_CLOSED_REQUEST
from proxy.metrics import Metrics
from proxy.scope import RequestScope, request_scope

BARS_AT: Final = ("debug", "info")
"""Levels at which a terminal, and nothing else, shows how far the loading of a model is."""

_logger = structlog.get_logger("anaphora.request")


def configure(level: str, log_format: str) -> None:
    """One handler on the root logger, for structlog's loggers and everybody else's.

    Called once, from `__main__`, before a library that draws bars is imported: tqdm looks at its variable then.
    """
    if log_format != "console" or not sys.stderr.isatty() or level not in BARS_AT:
        os.environ.setdefault("TQDM_DISABLE", "1")
    renderer: Any = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # the rest (its start, refused bytes) our lines say


async def attach_request_id(message: Message, scope: Scope) -> None:
    """Litestar `before_send` hook: covers errors and unknown routes, which middleware does not see."""
    if message["type"] == "http.response.start":
        request_id = request_scope(scope).request_id.encode("ascii")
        message["headers"] = [*message["headers"], (b"x-request-id", request_id)]


class RequestLog:
    """ASGI middleware of `/v1`: gives back what the request held, then writes its line and counts it.

    A client that takes nothing of its answer for `client_timeout_s` is cut, or it would hold its place for
    ever.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = request_scope(scope)
        state = scope["litestar_app"].state
        status = CLIENT_CLOSED_REQUEST
        stalled = False

        async def watched_send(message: Message) -> None:
            nonlocal status, stalled
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                async with asyncio.timeout(state.settings.client_timeout_s):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            await self._app(scope, receive, watched_send)
        except Exception:
            if not stalled:
                raise
            held.fields["error"] = "client_stalled"
        finally:
            held.given_back.close()
            _finish(held, scope, status, state.metrics)


def _finish(held: RequestScope, scope: Scope, status: int, metrics: Metrics) -> None:
    duration_s = time.monotonic() - held.started_at
    metrics.requests.labels(status=str(status)).inc()
    metrics.request_duration.observe(duration_s)
    _logger.info(
        "request",
        request_id=held.request_id,
        path=scope["raw_path"].decode("ascii", "backslashreplace"),
        tenant=held.tenant.id if held.tenant else None,
        status=status,
        duration_s=round(duration_s, 4),
        **held.fields,
    )
