"""One uvicorn process around the app: it opens the service, and a SIGTERM loses nothing already accepted.

SIGTERM ─▶ service.begin_drain()   new requests: 503          running replies go on
        ─▶ at most 0.1 s           no new connection, idle ones close; 503 only on those that are busy
        ─▶ + shutdown_timeout_s    what still runs ends with an error frame or a 503
        ─▶ service.close()
"""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable
from dataclasses import fields
from types import FrameType
from typing import Any

import structlog
import uvicorn
from litestar.datastructures import State
from pydantic import SecretStr

from proxy.app import create_app
from proxy.settings import Settings
from proxy.shared_prompts import read_shared_prompts
from proxy.wire import wire_protocol
from sessions.errors import Draining, SessionError
from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service

_logger = structlog.get_logger("anaphora")

Opener = Callable[[ServiceOptions], Awaitable[ChatService]]

_LAST_WORDS_S = 2
"""Beyond the drain's time limit, for error frames to be written, before connections are cut."""

_INDEX_POLL_S = 0.05
"""How often a connecting index is looked at; its first answer or failure comes within about a second."""


class Server(uvicorn.Server):
    """A `uvicorn.Server` that opens the service, drains it, closes it.

    `opener` makes a service of its options. `refusal` says why start-up ended, if it did.
    """

    def __init__(self, settings: Settings, opener: Opener = open_service) -> None:
        self._app = create_app(settings)
        self._settings = settings
        self._opener = opener
        self._service: ChatService | None = None
        self.refusal: SessionError | None = None
        super().__init__(
            uvicorn.Config(
                self._app,
                loop="uvloop",
                http=wire_protocol(
                    client_timeout_s=settings.client_timeout_s, max_connections=settings.max_connections
                ),
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s) + _LAST_WORDS_S,
            )
        )

    @property
    def app_state(self) -> State:
        return self._app.state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal context: only flags are set. While the model is still loading there is nothing to drain."""
        if self._service is None:
            raise SystemExit(128 + sig)
        self._service.begin_drain()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            self._service = await self._opener(service_options(self._settings))
        except SessionError as error:
            self.refusal = error
            self.should_exit = True
            return
        self.app_state.service = self._service
        await super().startup(sockets)
        if self.started:
            self._announce(self._service, sockets or [])
            self._watch_index(self._service)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _logger.info("draining", open_replies=len(self.app_state.open_replies))
        cut = asyncio.get_running_loop().call_later(self._settings.shutdown_timeout_s, self._cut_open_replies)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()
            if self._service is not None:
                await self._service.close()

    def _cut_open_replies(self) -> None:
        self.app_state.open_replies.fail_all(Draining())

    def _announce(self, service: ChatService, sockets: list[socket.socket]) -> None:
        for listening in sockets:
            host, port = listening.getsockname()[:2]
            origin = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _logger.info(
                "serving",
                address=f"{origin}/v1",
                **({"page": f"{origin}/ui"} if self._settings.ui else {}),
                model=service.model_id,
                max_model_len=service.max_model_len,
                index=service.readiness().index,
            )

    def _watch_index(self, service: ChatService) -> None:
        """The index itself logs when it comes up or goes down, but not that it never came up."""
        state = service.readiness().index
        if state == "connecting" and not self.should_exit:
            asyncio.get_running_loop().call_later(_INDEX_POLL_S, self._watch_index, service)
        elif state == "down":
            _logger.warning("index is down at start, reuse is from the pool alone")


def service_options(settings: Settings) -> ServiceOptions:
    """Fields of the same name; secrets are unwrapped here, at the door. Raises as `read_shared_prompts` does."""
    values: dict[str, Any] = {field.name: getattr(settings, field.name) for field in fields(ServiceOptions)}
    for name, value in values.items():
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    return ServiceOptions(**(values | {"shared_prompts": read_shared_prompts(settings)}))
