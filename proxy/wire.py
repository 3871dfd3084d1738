"""WireProtocol: uvicorn's HTTP/1.1 protocol with bounds on what a client may do before anybody knows its key.

    connection ──▶ head ─────────▶ body ──▶ reply ──▶ next head, or silence
                   └ bounded here           └ `RequestLog`     └ uvicorn's keep-alive timer
                             └ `BodyRequest`

Whatever carries no body (head, trailers, chunk framing) is bounded in bytes; the time in which a client owes
the server something, or takes nothing of its last answer, is bounded by `client_timeout_s`; so is the number
of connections. A refusal has OpenAI's body and a request id, and its connection closes: a client that is
still sending may see a reset instead.
"""

from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import ClassVar
from uuid import uuid4

import msgspec
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.errors import HEAD_TIMEOUT, HEAD_TOO_LARGE, INVALID_HTTP, TOO_MANY_CONNECTIONS, ErrorAnswer

_logger = structlog.get_logger("anaphora")

MAX_HEAD_BYTES = 65_536
"""Request line and header lines of one request. One that begins in the middle of a read may reach twice that."""


def wire_protocol(*, client_timeout_s: float, max_connections: int) -> type["WireProtocol"]:
    """The class for `uvicorn.Config(http=…)`, which makes an instance per connection and passes no more than its own
    settings."""

    class Bounded(WireProtocol):
        pass

    Bounded.client_timeout_s = client_timeout_s
    Bounded.max_connections = max_connections
    return Bounded


class WireProtocol(HttpToolsProtocol):
    """One connection. Event loop only."""

    client_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]

    _num_idle_bytes = 0
    """Bytes fed to the parser since a head or a message ended, or some of a body came."""
    _is_in_head = False
    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_waiting()
        if len(self.connections) > self.max_connections:
            self._refuse(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """In pieces, none of which leads past the bound: the parser keeps an unfinished header line to itself."""
        while data and not self.transport.is_closing():
            piece = data[: MAX_HEAD_BYTES - self._num_idle_bytes]
            data = data[len(piece) :]
            self._num_idle_bytes += len(piece)
            super().data_received(piece)
            if self._num_idle_bytes >= MAX_HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Called by uvicorn where the bytes are no HTTP; its sentence is plain text, so ours is used."""
        self._refuse(INVALID_HTTP)

    # -- parser callbacks --

    def on_message_begin(self) -> None:
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_in_head = False
        self._num_idle_bytes = 0
        self._end_waiting()

    def on_body(self, body: bytes) -> None:
        self._num_idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_idle_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else it is that of a pipelined request, which runs
            self._begin_waiting()

    # -- the client's time --

    def _begin_waiting(self) -> None:
        self._end_waiting()
        self._deadline = self.loop.call_later(self.client_timeout_s, self._give_up)

    def _end_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        """A begun head gets an answer. Silence, a body nobody waits for and an answer that is not taken get none."""
        if self._is_in_head and not self.transport.is_closing():
            self._refuse(HEAD_TIMEOUT)
        else:
            self.transport.abort()

    # -- refusals --

    def _refuse(self, answer: ErrorAnswer) -> None:
        """Answer if the client awaits one and nothing of another is on its way; close in any case."""
        if self.transport.is_closing():
            return
        if self._is_answer_awaited():
            request_id = uuid4().hex
            _logger.info("connection refused", request_id=request_id, status=answer.status, error=answer.code)
            self.transport.write(_encoded(answer, request_id))
        self._begin_waiting()  # for the client to take it
        self.transport.close()

    def _is_answer_awaited(self) -> bool:
        if self.cycle is None:
            return True
        return self._is_in_head if self.cycle.response_complete else not self.cycle.response_started


def _encoded(answer: ErrorAnswer, request_id: str) -> bytes:
    body = msgspec.json.encode(answer.body())
    headers = {
        **answer.headers,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        "x-request-id": request_id,
    }
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
