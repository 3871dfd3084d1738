"""Errors as the official client sees them: class, code, param, headers; and what never gets as far as a handler."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer, Serve, running

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def ask(client: OpenAI, **parameters: Any) -> Any:
    return client.chat.completions.create(**({"model": "fake", "messages": HELLO, "max_tokens": 4} | parameters))


@pytest.mark.parametrize(
    ("parameters", "param", "code"),
    [
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": "x" * 1001}, "stop", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 100, "00000001": 100}}, "logit_bias", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "unsupported_parameter"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
         "messages[0].content[0]", "unsupported_parameter"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "context_length_exceeded"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_a_400_with_its_parameter(
    serve_small: RunningServer, parameters: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    """Also for streams: a real status, before any event."""
    with serve_small.client() as client, pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=stream, **parameters)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


@pytest.fixture(scope="module")
def serve_small() -> Iterator[RunningServer]:
    with running(engine={"max_model_len": 200}) as started:
        yield started
        started.expect_idle()


def test_another_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_the_name_of_an_unknown_model_is_not_echoed_at_length(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="x" * 1_000_000)
    assert len(caught.value.response.content) < 500


def test_api_keys(serve: Serve) -> None:
    server = serve(api_keys="alice=sk-one,alice=sk-two,bob=sk-three")
    for key in ("sk-one", "sk-two", "sk-three"):
        assert ask(server.client(api_key=key)).choices
    for key in ("sk-on", "sk-one ,", "sk-four"):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(server.client(api_key=key))
        assert (caught.value.code, caught.value.response.headers["www-authenticate"]) == ("invalid_api_key", "Bearer")
    assert httpx.get(server.origin + "/v1/models").status_code == 401
    for unfit in (b"Basic sk-one", b"sk-one", b"Bearer", b"Bearer sk-on\xc3\xa9"):
        assert httpx.get(server.origin + "/v1/models", headers={b"Authorization": unfit}).status_code == 401
    assert httpx.get(server.origin + "/health").status_code == 200


def test_tenants_share_no_cache(serve: Serve) -> None:
    server = serve(api_keys="alice=sk-one,alice=sk-two,bob=sk-three")

    def cached(key: str) -> int:
        return int(ask(server.client(api_key=key)).usage.prompt_tokens_details.cached_tokens)

    assert cached("sk-one") == 0
    assert cached("sk-three") == 0
    assert cached("sk-two") > 0


def test_a_refused_key_is_refused_before_the_body_is_read(serve: Serve) -> None:
    server = serve(api_keys="alice=sk-one")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Length", "9000000")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "unknown_url"),
        ("GET", "/v1/nowhere", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_have_error_bodies_and_request_ids(
    server: RunningServer, method: str, path: str, status: int, code: str
) -> None:
    response = httpx.request(method, server.origin + path, headers={"x-request-id": "mine"})
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 50_000])
def test_a_body_that_is_no_request_is_a_400(server: RunningServer, body: bytes) -> None:
    response = httpx.post(server.origin + "/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "param"),
    [("/chat/completions", "messages"), ("/completions", "prompt"), ("/responses", "model"), ("/tokenize", "prompt")],
)
def test_no_body_lacks_what_is_required(server: RunningServer, path: str, param: str) -> None:
    """Not a parameter of ours."""
    answer = httpx.post(f"{server.origin}/v1{path}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_conversation_can_begin_without_a_body(server: RunningServer) -> None:
    assert httpx.post(server.origin + "/v1/conversations").json()["object"] == "conversation"


def test_the_content_type_is_the_client_s_business(server: RunningServer) -> None:
    body = json.dumps({"model": "fake", "messages": HELLO, "max_tokens": 1}).encode()
    response = httpx.post(server.origin + "/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert response.status_code == 200


@pytest.mark.parametrize("announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_past_the_bound_is_a_413(serve: Serve, announced: bool) -> None:
    server = serve(max_body_bytes=10_000)
    body = b"x" * 20_000
    content = body if announced else (body[start : start + 1000] for start in range(0, len(body), 1000))
    response = httpx.post(server.origin + "/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_messages_and_nesting_are_bounded(serve: Serve) -> None:
    server = serve(max_messages=3, max_json_depth=8)
    with server.client() as client:
        with pytest.raises(openai.BadRequestError, match="At most 3 messages"):
            ask(client, messages=HELLO * 4)
        deep: Any = "x"
        for _ in range(9):
            deep = [deep]
        with pytest.raises(openai.BadRequestError, match="8 levels"):
            ask(client, extra_body={"extra": deep})
        assert ask(client, messages=HELLO * 3).choices


def test_a_dead_engine_is_a_500_and_not_ready(serve: Serve) -> None:
    server = serve()
    assert httpx.get(server.origin + "/ready").status_code == 200
    server.service.engine.stop(5)
    response = httpx.get(server.origin + "/ready")
    assert response.status_code == 503
    assert response.json()["engine_alive"] is False
    assert httpx.get(server.origin + "/health").json() == {"status": "ok"}
    with server.client() as client, pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert caught.value.code == "engine_failed"


def test_metrics_are_served(server: RunningServer, client: OpenAI) -> None:
    ask(client)
    exposition = httpx.get(server.origin + "/metrics")
    assert exposition.headers["content-type"].count("charset") == 1
    lines = exposition.text.splitlines()
    assert 'anaphora_http_requests_total{status="200"} ' in exposition.text
    assert "anaphora_num_requests_running 0.0" in lines
    assert not any(line.startswith("anaphora_time_to_first_token_seconds_count 0") for line in lines)


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_may_ask_for_the_head_alone(server: RunningServer, path: str) -> None:
    whole, head = httpx.get(server.origin + path), httpx.head(server.origin + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert head.headers["x-request-id"]


def test_cors_is_off_unless_asked_for(server: RunningServer, serve: Serve) -> None:
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in httpx.get(server.origin + "/v1/models", headers=asked).headers
    open_server = serve(cors_origins="https://chat.example, https://other.example")
    answer = httpx.options(open_server.origin + "/v1/chat/completions", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://chat.example"
