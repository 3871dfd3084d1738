"""How requests end: clients that leave, queues that are full, time limits, silences, drains. Nothing stays behind."""

import contextlib
import http.client
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.contract.conftest import RunningServer, Serve, eventually

FOREVER = {"max_tokens": 8000, "temperature": 0, "ignore_eos": True}


def body(content: str = "hello", **parameters: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **parameters}


@contextlib.contextmanager
def request_left_open(server: RunningServer, **parameters: Any) -> Iterator[http.client.HTTPConnection]:
    """A request sent whole, its answer not read; the socket closes at the end of the block at the latest."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps(body(**parameters)))
    try:
        yield connection
    finally:
        connection.close()


# -- clients that leave --


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_everything(server: RunningServer, stream: bool) -> None:
    with request_left_open(server, stream=stream, **FOREVER) as connection:
        eventually(lambda: server.stats().num_requests_running == 1, "the request runs")
        if stream:
            assert connection.getresponse().read(100)
    left_at = time.monotonic()
    server.expect_idle()
    assert time.monotonic() - left_at < 5
    assert server.stats().generation_tokens < 8000, "it was aborted, not finished"


def test_a_client_that_leaves_the_queue_frees_its_place(server: RunningServer) -> None:
    with server.engine_held():
        with request_left_open(server, **FOREVER):
            eventually(lambda: server.num_in_flight() == 1, "the request was admitted")
        eventually(lambda: server.num_in_flight() == 0, "its place is free, though the engine stands still")
    server.expect_idle()


def test_a_client_that_leaves_in_its_body_is_forgotten(server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"model":')
    eventually(lambda: server.num_in_flight() == 1, "the request was admitted")
    connection.close()
    server.expect_idle()


def test_fifty_streams_and_twenty_sudden_departures(serve: Serve) -> None:
    server = serve(engine={"num_blocks": 2048, "max_num_seqs": 32})
    chance = random.Random(7)
    parameters = {"max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}

    def one(index: int, reads: int | None) -> int:
        """Number of complete events read; `reads` None reads to the end."""
        with httpx.stream(
            "POST", server.origin + "/v1/chat/completions", json=body(f"{index}", **parameters), timeout=60
        ) as response:
            assert response.status_code == 200
            lines = 0
            for line in response.iter_lines():
                lines += bool(line)
                if lines == reads:
                    return lines
            return lines

    jobs = [(index, chance.randint(1, 20) if index < 20 else None) for index in range(50)]
    chance.shuffle(jobs)
    with ThreadPoolExecutor(50) as pool:
        counts = dict(zip(jobs, pool.map(lambda job: one(*job), jobs), strict=True))
    assert all(lines > 20 for (_, reads), lines in counts.items() if reads is None)
    server.expect_idle()
    assert server.on_loop(lambda: len(server.server.app_state.open_replies)) == 0


# -- bounds --


def test_past_the_in_flight_bound_is_a_429_and_the_place_comes_back(serve: Serve) -> None:
    server = serve(max_inflight=1)
    hello: list[Any] = [{"role": "user", "content": "hello"}]
    with server.client() as client:
        with server.engine_held(), request_left_open(server, **FOREVER):
            eventually(lambda: server.num_in_flight() == 1, "one request is in flight")
            with pytest.raises(openai.RateLimitError) as caught:
                client.chat.completions.create(model="fake", messages=hello)
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        server.expect_idle()
        assert client.chat.completions.create(model="fake", messages=hello, max_tokens=1).choices


def test_a_tenant_s_bound_is_its_own(serve: Serve) -> None:
    server = serve(max_inflight_per_tenant=1, api_keys="alice=sk-a,bob=sk-b")
    with server.engine_held():
        statuses = []

        def post(key: str) -> None:
            headers = {"Authorization": f"Bearer {key}"}
            response = httpx.post(
                server.origin + "/v1/chat/completions", json=body(max_tokens=1), headers=headers, timeout=20
            )
            statuses.append((key, response.status_code))

        threads = [threading.Thread(target=post, args=(key,)) for key in ("sk-a", "sk-b")]
        for thread in threads:
            thread.start()
        eventually(lambda: server.num_in_flight() == 2, "one request each")
        post("sk-a")
        assert statuses == [("sk-a", 429)]
    for thread in threads:
        thread.join()
    assert sorted(statuses[1:]) == [("sk-a", 200), ("sk-b", 200)]


def test_refused_requests_leave_nothing_behind(server: RunningServer) -> None:
    for bad in (body(temperature=9), body(model="other"), [], {"model": "fake"}):
        assert httpx.post(server.origin + "/v1/chat/completions", json=bad).status_code in (400, 404)
    server.expect_idle()


def test_a_slow_body_is_a_408(serve: Serve) -> None:
    server = serve(client_timeout_s=0.2)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"model":')
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (408, "body_timeout")
    connection.close()
    server.expect_idle()


def test_a_client_that_takes_nothing_is_cut(serve: Serve) -> None:
    """The answer fills the sockets' small buffers; its place is free although the client neither reads nor leaves."""
    server = serve(client_timeout_s=0.3)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.connect(("127.0.0.1", server.port))
    everything = body(stream=True, n=8, max_tokens=300, ignore_eos=True, temperature=0)
    connection.request("POST", "/v1/chat/completions", json.dumps(everything))
    eventually(lambda: server.num_in_flight() == 1, "the request was admitted")
    server.expect_idle()
    connection.close()


# -- time --


def test_silence_is_bridged_and_the_answer_still_comes(serve: Serve) -> None:
    server = serve(keepalive_s=0.1)
    url, lines = server.origin + "/v1/chat/completions", []
    with contextlib.ExitStack() as engine:
        engine.enter_context(server.engine_held())
        with httpx.stream("POST", url, json=body(max_tokens=2, ignore_eos=True, stream=True), timeout=20) as response:
            for line in response.iter_lines():
                lines.append(line)
                if line == ": keep-alive":
                    engine.close()
    assert ": keep-alive" in lines
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_reply_past_its_time_is_a_504_while_nothing_was_sent(serve: Serve, stream: bool) -> None:
    server = serve(max_completion_time_s=0.2)
    with server.engine_held():
        response = httpx.post(server.origin + "/v1/chat/completions", json=body(stream=stream, **FOREVER), timeout=20)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "completion_timeout"
    assert response.headers["x-should-retry"] == "false"
    server.expect_idle()


def test_a_stream_past_its_time_ends_with_an_error_event(serve: Serve) -> None:
    server = serve(max_completion_time_s=0.5)
    with server.client() as client:
        stream = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=7000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        received = 0
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                received += 1
    assert received > 1
    assert caught.value.code == "completion_timeout"
    server.expect_idle()


def test_an_engine_that_fails_in_a_stream_is_an_error_event(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        stream = client.chat.completions.create(
            model="fake",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=7000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        server.service.engine.stop(5)
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
    assert caught.value.code == "engine_failed"


# -- drain --


def test_new_work_is_refused_from_the_signal_on(serve: Serve) -> None:
    """Not from uvicorn's next look at its flag: what arrives in between must not be accepted and then cut."""
    server = serve()

    def is_draining_after_the_signal() -> bool:
        server.server.handle_exit(signal.SIGTERM, None)
        return server.service.readiness().draining

    assert server.on_loop(is_draining_after_the_signal)


def test_a_drain_refuses_new_work_and_finishes_what_runs(serve: Serve) -> None:
    server = serve(shutdown_timeout_s=20)
    url = server.origin + "/v1/chat/completions"
    with httpx.Client(timeout=20) as kept_alive, ThreadPoolExecutor(1) as pool:
        assert kept_alive.post(url, json=body(max_tokens=1)).status_code == 200
        with server.engine_held():
            running = pool.submit(httpx.post, url, json=body(max_tokens=20, ignore_eos=True), timeout=20)
            eventually(lambda: server.service.stats().num_requests_waiting == 1, "the request is accepted")
            server.on_loop(server.service.begin_drain)
            refused = kept_alive.post(url, json=body(max_tokens=1))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert refused.headers["retry-after"]
            assert httpx.get(server.origin + "/ready").status_code == 503
            server.server.should_exit = True
        finished = running.result(20)
    assert finished.status_code == 200
    assert finished.json()["usage"]["completion_tokens"] == 20


def test_from_the_signal_on_new_connections_are_refused_and_idle_ones_closed(serve: Serve) -> None:
    server = serve(shutdown_timeout_s=20)
    url = server.origin + "/v1/chat/completions"

    def is_refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", server.port), timeout=5) as idle:
        with server.engine_held():
            running = pool.submit(httpx.post, url, json=body(max_tokens=2, ignore_eos=True), timeout=20)
            eventually(lambda: server.service.stats().num_requests_waiting == 1, "the request is accepted")
            server.on_loop(lambda: server.server.handle_exit(signal.SIGTERM, None))
            eventually(is_refused, "new connections are refused")
            assert idle.recv(1) == b""
            assert not running.done()
        finished = running.result(20)
    assert (finished.status_code, finished.headers["connection"]) == (200, "close")


def test_a_stream_that_outlives_the_drain_ends_with_an_error_event(serve: Serve) -> None:
    server = serve(shutdown_timeout_s=0.3)
    lines: list[str] = []
    with httpx.stream(
        "POST",
        server.origin + "/v1/chat/completions",
        json=body(stream=True, max_tokens=8000, ignore_eos=True),
        timeout=20,
    ) as response:
        for line in response.iter_lines():
            lines.append(line)
            server.server.should_exit = True
    errors = [json.loads(line[6:])["error"]["code"] for line in lines if '"error"' in line]
    assert errors == ["shutting_down"]
    assert lines[-2:] == ["data: [DONE]", ""]
