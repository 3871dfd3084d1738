"""What a client without a key can do on a connection, byte by byte: head, time and number are bounded."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from proxy.wire import MAX_HEAD_BYTES
from tests.contract.conftest import DEADLINE_S, RunningServer, Serve, eventually, running

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


@contextlib.contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as connection:
        yield connection


def answer(connection: socket.socket) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response


def refusal(connection: socket.socket) -> tuple[int, str]:
    """Status and code of an OpenAI error after which the connection is closed."""
    response = answer(connection)
    error = json.loads(response.read())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.getheader("content-type") == "application/json"
    assert response.getheader("x-request-id")
    assert response.getheader("connection") == "close"
    assert is_closed(connection)
    return response.status, error["code"]


def is_closed(connection: socket.socket) -> bool:
    """The server sends no further byte, and ends or resets the connection within the deadline."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def num_connections(server: RunningServer) -> int:
    return server.on_loop(lambda: len(server.server.server_state.connections))


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningServer]:
    """A server whose clients have 0.4 s; keys are needed."""
    with running(client_timeout_s=0.4, api_keys="alice=sk-one") as started:
        yield started
        started.expect_idle()


# -- bytes --


def head_of(num_bytes: int) -> bytes:
    start, end = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Filler: ", b"\r\n\r\n"
    return start + b"x" * (num_bytes - len(start) - len(end)) + end


def test_a_head_may_be_as_long_as_the_bound(server: RunningServer) -> None:
    with connected(server) as connection:
        for _ in range(3):
            connection.sendall(head_of(MAX_HEAD_BYTES))
            assert answer(connection).read() == b'{"status":"ok"}'
        connection.sendall(head_of(MAX_HEAD_BYTES + 1))
        assert refusal(connection) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "unending",
    [b"GET /health HTTP/1.1\r\nX: " + b"x" * 999, b"GET /" + b"x" * 999, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200],
    ids=["line", "path", "lines"],
)
def test_a_head_without_end_is_cut(server: RunningServer, unending: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(unending)
        filler = unending[-6:] * 1000
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(filler)
            raise AssertionError("60 MB of headers were taken")
    eventually(lambda: num_connections(server) == 0, "the connection is forgotten")


def test_trailers_without_end_are_cut(server: RunningServer) -> None:
    """A body's end is followed by header lines once more."""
    with connected(server) as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                connection.sendall(b"x" * 6000)
            raise AssertionError("60 MB of trailers were taken")
    server.expect_idle()


def test_pipelined_requests_and_long_bodies_are_no_long_heads(server: RunningServer) -> None:
    """Each is small, or a body; together they are ten times the bound."""
    body = json.dumps({"model": "fake", "messages": [{"role": "king", "content": "x" * 200_000}]}).encode()
    request = POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connected(server) as connection, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(connection.sendall, (HEALTH * 20 + request) * 3 + HEALTH)
        with connection.makefile("rb") as stream:
            statuses = [read_status(stream) for _ in range(64)]
        sent.result(DEADLINE_S)
    assert statuses == ([200] * 20 + [400]) * 3 + [200]


def read_status(stream: Any) -> int:
    """`http.client` reads ahead, past the end of one response; pipelined ones are read by hand."""
    status = int(stream.readline().split()[1])
    lines = iter(stream.readline, b"\r\n")
    headers = dict(line.lower().strip().split(b": ", 1) for line in lines)
    stream.read(int(headers[b"content-length"]))
    return status


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"\0" * 100_000]
)
def test_what_is_not_http_is_a_400(server: RunningServer, nonsense: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(nonsense)
        assert refusal(connection) == (400, "invalid_http")


def test_nonsense_after_an_answer_is_a_400_of_its_own(server: RunningServer) -> None:
    with connected(server) as connection:
        connection.sendall(HEALTH)
        assert answer(connection).read()
        connection.sendall(b"GET / HTTP/9.9\r\n\r\n")
        assert refusal(connection) == (400, "invalid_http")


def test_nonsense_never_stands_in_the_middle_of_a_stream(server: RunningServer) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8000, "stream": True}
    content = json.dumps({**body, "ignore_eos": True}).encode()
    with connected(server) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        received = connection.recv(1000)
        connection.sendall(b"nonsense\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                received += piece
    assert received.startswith(b"HTTP/1.1 200")
    assert received.count(b"HTTP/1.1") == 1
    server.expect_idle()


# -- time --


@pytest.mark.parametrize("start", [b"G", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: y"])
def test_a_head_that_stops_is_a_408(hasty: RunningServer, start: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(start)
        assert refusal(connection) == (408, "headers_timeout")


def test_a_head_that_drips_has_no_more_time(hasty: RunningServer) -> None:
    with connected(hasty) as connection:
        connection.settimeout(0.05)
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        started_at = time.monotonic()
        received = b""
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started_at < 5 and not received:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    received = connection.recv(1000)
        assert received.startswith(b"HTTP/1.1 408")


def test_the_second_head_of_a_connection_has_the_same_time(hasty: RunningServer) -> None:
    with connected(hasty) as connection:
        connection.sendall(HEALTH)
        assert answer(connection).read()
        connection.sendall(b"GET / HT")
        assert refusal(connection) == (408, "headers_timeout")


def test_silence_is_cut_without_an_answer(hasty: RunningServer) -> None:
    with connected(hasty) as connection:
        assert is_closed(connection)


def test_a_body_that_drips_after_its_answer_is_cut(hasty: RunningServer) -> None:
    """The key was refused before the body; whoever goes on sending it gets no second answer."""
    with connected(hasty) as connection:
        connection.sendall(POST + b"Content-Length: 9000000\r\n\r\n")
        assert answer(connection).status == 401
        connection.settimeout(0.05)
        started_at = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started_at < 5:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    assert connection.recv(1000) == b""
                    break
        assert time.monotonic() - started_at < 5


def test_a_reply_may_take_longer_than_its_head(serve: Serve) -> None:
    server = serve(client_timeout_s=0.2)
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with ThreadPoolExecutor(1) as pool, server.engine_held():
        reply = pool.submit(httpx.post, server.origin + "/v1/chat/completions", json=body, timeout=DEADLINE_S)
        eventually(lambda: server.service.stats().num_requests_waiting == 1, "the request is accepted")
        with pytest.raises(TimeoutError):
            reply.result(0.6)
    assert reply.result(DEADLINE_S).status_code == 200


# -- number --


def test_connections_past_the_bound_are_a_503(serve: Serve) -> None:
    server = serve(max_connections=2)
    with connected(server), connected(server) as second:
        eventually(lambda: num_connections(server) == 2, "two connections")
        with connected(server) as third:
            assert refusal(third) == (503, "too_many_connections")
        second.sendall(HEALTH)
        assert answer(second).status == 200
    eventually(lambda: num_connections(server) == 0, "all are closed")
    assert httpx.get(server.origin + "/health").status_code == 200
