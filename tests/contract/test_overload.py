"""A full queue, as the official client sees it: what counts as waiting, when to come back, and nothing left behind."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.contract.conftest import DEADLINE_S, RunningServer, Serve, eventually

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
FOREVER: dict[str, Any] = {"max_tokens": 8000, "temperature": 0, "ignore_eos": True}


@contextlib.contextmanager
def left_open(server: RunningServer, **parameters: Any) -> Iterator[http.client.HTTPConnection]:
    """A request sent whole, its answer not read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    body = {"model": "fake", "messages": HELLO, **FOREVER, **parameters}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def queue(server: RunningServer, num_waiting: int) -> Iterator[None]:
    """One request runs and holds the only place; `num_waiting` others wait behind it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(left_open(server))
        eventually(lambda: server.stats().num_requests_running == 1, "one runs")
        for expected in range(1, num_waiting + 1):
            stack.enter_context(left_open(server))
            eventually(lambda wanted=expected: server.stats().num_requests_waiting == wanted, "one more waits")  # type: ignore[misc]
        yield


def retry_after_s(server: RunningServer, **parameters: Any) -> int:
    """What a refused request is told."""
    with server.client() as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="fake", messages=HELLO, max_tokens=1, **parameters)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    return int(caught.value.response.headers["retry-after"])


@pytest.fixture
def narrow(serve: Serve) -> RunningServer:
    """One place to run in, two to wait in."""
    return serve(max_num_waiting=2, engine={"max_num_seqs": 1})


def test_what_runs_takes_no_place_in_the_queue(narrow: RunningServer) -> None:
    with queue(narrow, 2):
        assert 1 <= retry_after_s(narrow) <= 60
        assert narrow.stats().num_requests_waiting == 2
    narrow.expect_idle()
    with queue(narrow, 2):
        pass
    narrow.expect_idle()


def test_a_request_leaves_the_queue_with_its_first_step(narrow: RunningServer) -> None:
    """Nobody has to ask: a queue that is looked at late would look slow."""
    with left_open(narrow, stream=True) as connection:
        assert connection.getresponse().read(100)
        assert narrow.on_loop(lambda: narrow.service._admission.num_waiting) == 0
    narrow.expect_idle()


def test_choices_are_counted_one_by_one(narrow: RunningServer) -> None:
    with queue(narrow, 1):
        retry_after_s(narrow, n=2)
        with left_open(narrow):
            eventually(lambda: narrow.stats().num_requests_waiting == 2, "a single one still fits")
    narrow.expect_idle()
    with narrow.client() as client:
        answer = client.chat.completions.create(model="fake", messages=HELLO, max_tokens=1, n=5)
    assert len(answer.choices) == 5, "more choices than the bound are taken behind nobody"
    narrow.expect_idle()


def test_while_nothing_moves_people_are_sent_away_for_longer(narrow: RunningServer) -> None:
    with queue(narrow, 2):
        eventually(lambda: retry_after_s(narrow) >= 3, "two wait for more than a second and nobody leaves")
    narrow.expect_idle()


def test_a_client_that_leaves_the_queue_frees_its_place_at_once(narrow: RunningServer) -> None:
    with narrow.engine_held():
        with left_open(narrow, n=2):
            eventually(lambda: narrow.stats().num_requests_waiting == 2, "two choices wait")
            retry_after_s(narrow)
        eventually(lambda: narrow.stats().num_requests_waiting == 0, "gone, though the engine stands still")
    narrow.expect_idle()


def test_requests_that_the_engine_loses_leave_the_queue(narrow: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        with narrow.engine_held():
            lost = [stack.enter_context(left_open(narrow)) for _ in range(2)]
            eventually(lambda: narrow.stats().num_requests_waiting == 2, "two wait")
            narrow.service.engine.stop(0)
        assert [connection.getresponse().status for connection in lost] == [500, 500]
        eventually(lambda: narrow.stats().num_requests_waiting == 0, "nobody waits for a dead engine")


def test_the_official_client_comes_back_and_is_served(narrow: RunningServer) -> None:
    """It sleeps for as long as Retry-After says, and finds the queue empty: at once, or on a slow machine later."""

    def num_refused() -> bool:
        return 'anaphora_http_requests_total{status="429"}' in httpx.get(narrow.origin + "/metrics").text

    with ThreadPoolExecutor(1) as pool, narrow.client(max_retries=20) as client:
        with queue(narrow, 2):
            answer = pool.submit(client.chat.completions.create, model="fake", messages=HELLO, max_tokens=1)
            eventually(num_refused, "it was refused once")
        assert answer.result(DEADLINE_S).choices
    narrow.expect_idle()
