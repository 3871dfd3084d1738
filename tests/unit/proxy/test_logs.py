"""Log lines: one per request, machine-readable, and never a word of a prompt."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from proxy import logs
from proxy.errors import log_unexpected
from proxy.metrics import Metrics
from proxy.scope import RequestScope, request_scope
from sessions.reports import Stats
from sessions.types import Tenant


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What `configure("info", "json")` writes; the process's own logging is put back afterwards."""
    root, written = logging.getLogger(), io.StringIO()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    uvicorn, uvicorn_level = logging.getLogger("uvicorn"), logging.getLogger("uvicorn").level
    logs.configure("info", "json")
    assert isinstance(root.handlers[0], logging.StreamHandler)
    root.handlers[0].setStream(written)
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)
    uvicorn.setLevel(uvicorn_level)
    structlog.configure(**configuration)


def records(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def scope(path: bytes = b"/v1/chat/completions", headers: list[tuple[bytes, bytes]] | None = None) -> Any:
    return {"type": "http", "path": path.decode(), "raw_path": path, "headers": headers or [], "state": {}}


def test_structlog_and_the_standard_library_are_written_alike(lines: io.StringIO) -> None:
    structlog.get_logger("anaphora").info("pool ready", tokens=7)
    logging.getLogger("uvicorn.error").error("from %s", "uvicorn")
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("x").debug("too fine")
    first, second = records(lines)
    assert (first["event"], first["tokens"], first["level"], first["logger"]) == ("pool ready", 7, "info", "anaphora")
    assert (second["event"], second["level"]) == ("from uvicorn", "error")


def test_an_unexpected_error_is_logged_without_its_text(lines: io.StringIO) -> None:
    try:
        int("the secret prompt")
    except ValueError as error:
        log_unexpected("id-1", error)
    [record] = records(lines)
    assert "secret" not in lines.getvalue()
    assert (record["error"], record["request_id"]) == ("ValueError", "id-1")
    assert any("test_an_unexpected_error" in frame for frame in record["frames"])


async def test_a_request_s_line_comes_when_it_ends_and_after_what_it_held(lines: io.StringIO) -> None:
    order: list[str] = []
    asgi_scope = scope(b"/v1/chat/completions%0aforged")
    asgi_scope["litestar_app"] = type("App", (), {"state": type("State", (), {})()})()
    state = asgi_scope["litestar_app"].state
    state.metrics = Metrics(Stats)
    state.settings = type("Settings", (), {"client_timeout_s": 5.0})()

    async def app(inner: Any, receive: Any, send: Any) -> None:
        held = request_scope(inner)
        held.tenant = Tenant("alice")
        held.given_back.callback(lambda: order.append("given back"))
        held.given_back.callback(lambda: held.fields.update(prompt_tokens=7))
        await send({"type": "http.response.start", "status": 207, "headers": []})
        assert lines.getvalue() == ""
        raise RuntimeError("after the start")

    async def send(message: Any) -> None:
        order.append(message["type"])

    with pytest.raises(RuntimeError):
        await logs.RequestLog(app)(asgi_scope, send, send)
    [record] = records(lines)
    assert order == ["http.response.start", "given back"]
    assert (record["tenant"], record["status"], record["prompt_tokens"]) == ("alice", 207, 7)
    assert record["path"] == "/v1/chat/completions%0aforged"
    assert b'anaphora_http_requests_total{status="207"} 1.0' in state.metrics.exposition()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"abc-1.2:3_Z", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"two words", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_a_sane_request_id_is_kept(sent: bytes, kept: bool) -> None:
    held = request_scope(scope(headers=[(b"x-request-id", sent)]))
    assert (held.request_id.encode("latin-1") == sent) == kept
    assert held.request_id


def test_the_scope_is_made_once() -> None:
    one = scope()
    assert isinstance(request_scope(one), RequestScope)
    assert request_scope(one) is request_scope(one)
