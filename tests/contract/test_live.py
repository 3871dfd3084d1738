"""/v1/cache/live: one moment, and moments as events; the tree is the caller's own."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pydantic import SecretStr

from proxy.live import MAX_WATCHERS_PER_TENANT
from tests.contract.conftest import DEADLINE_S, RunningServer, Serve, eventually

HTTP = httpx.Client(timeout=DEADLINE_S)
EVENTS = {"accept": "text/event-stream"}
SYSTEM = {"role": "system", "content": "You are the assistant of a library. " * 6}


def ask(client: OpenAI, *texts: str) -> Any:
    messages: list[Any] = [SYSTEM, *({"role": "user", "content": text} for text in texts)]
    return client.chat.completions.create(model="fake", messages=messages, max_tokens=4, temperature=0)


def moment(server: RunningServer, key: str = "none", **query: Any) -> Any:
    headers = {"authorization": f"Bearer {key}"}
    return HTTP.get(f"{server.origin}/v1/cache/live", params=query, headers=headers)


@pytest.fixture(scope="module", autouse=True)
def _close_connections() -> Iterator[None]:
    yield
    HTTP.close()


@contextlib.contextmanager
def events(server: RunningServer, key: str = "none", interval_s: float = 0.2) -> Iterator[Iterator[Any]]:
    """Moments, as they come; the stream is left at the end."""
    headers = EVENTS | {"authorization": f"Bearer {key}"}
    url = f"{server.origin}/v1/cache/live?interval_s={interval_s}"
    with HTTP.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (
            json.loads(line.removeprefix("data: "))
            for line in answer.iter_lines()
            if line.startswith("data: ") and line != "data: [DONE]"
        )


def test_two_turns_of_two_conversations_are_a_head_and_two_branches(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        assert moment(server).json()["tree"] == {"nodes": [], "left_out": 0}
        first = ask(client, "One?").usage
        ask(client, "Two?")
        found = moment(server).json()
    head, *branches = found["tree"]["nodes"]
    assert (head["parent"], head["start"], head["paths"], head["hits"]) == (None, 0, 2, 1)
    assert [(node["parent"], node["start"], node["paths"]) for node in branches] == [
        (head["id"], head["tokens"], 1)
    ] * 2
    assert head["tokens"] + branches[1]["tokens"] == first.prompt_tokens + first.completion_tokens - 1
    assert found["window"]["ttft"]["count"] == 2 and found["window"]["ttft"]["p50"] > 0
    assert found["window"]["cached_tokens"] > 0 and found["pool"]["cached"] > 0
    assert found["model"] == "fake" and found["running"] == found["waiting"] == 0
    server.expect_idle()


def test_what_is_left_out_is_said(serve: Serve) -> None:
    server = serve()
    with server.client() as client:
        for text in ("One?", "Two?", "Three?"):
            ask(client, text)
    tree = moment(server, nodes=2).json()["tree"]
    assert [node["left_out"] for node in tree["nodes"]] == [2, 0] and tree["nodes"][0]["paths"] == 3


def test_the_stream_shows_what_is_stored_as_it_comes(serve: Serve) -> None:
    server = serve()
    with events(server) as moments, server.client() as client:
        assert next(moments)["tree"]["nodes"] == []
        ask(client, "One?")
        grown = next(seen for seen in moments if seen["tree"]["nodes"])
        assert grown["tree"]["nodes"][0]["tokens"] > 200
    eventually(lambda: server.on_loop(server.server.app_state.live.watchers.num_open) == 0, "the stream is given back")


def test_a_tree_is_a_tenant_s_own(serve: Serve) -> None:
    server = serve(api_keys=SecretStr("alice=sk-alice,bob=sk-bob"))
    with server.client(api_key="sk-alice") as alice:
        ask(alice, "One?")
    assert moment(server, "sk-alice").json()["tree"]["nodes"]
    assert moment(server, "sk-bob").json()["tree"] == {"nodes": [], "left_out": 0}
    assert moment(server, "sk-eve").status_code == 401
    assert moment(server, "sk-bob").json()["window"]["prompt_tokens"] > 0


@pytest.mark.parametrize("query", [{"interval_s": 0}, {"interval_s": "nan"}, {"nodes": 0}, {"nodes": 1001}])
def test_bad_queries_are_refused_by_name(server: RunningServer, query: dict[str, Any]) -> None:
    answer = moment(server, **query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


def test_streams_are_bounded_and_are_no_requests_in_flight(serve: Serve) -> None:
    server = serve(max_inflight=1)
    with contextlib.ExitStack() as open_streams, server.client() as client:
        streams = [open_streams.enter_context(events(server, interval_s=10)) for _ in range(MAX_WATCHERS_PER_TENANT)]
        for stream in streams:
            next(stream)
        ask(client, "One?")
        refused = HTTP.get(f"{server.origin}/v1/cache/live", headers=EVENTS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"]
        assert moment(server).status_code == 200


def test_a_drain_ends_the_stream(serve: Serve) -> None:
    server = serve()
    with events(server, interval_s=10) as moments:
        next(moments)
        server.on_loop(server.service.begin_drain)
        assert list(moments) == []


def test_the_time_limit_of_a_reply_ends_the_stream(serve: Serve) -> None:
    server = serve(max_completion_time_s=0.5)
    with events(server) as moments:
        assert 1 <= len(list(moments)) <= 4
