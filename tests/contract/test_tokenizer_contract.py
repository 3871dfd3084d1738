"""/tokenize, /detokenize and the preview of a chat's prompt, in the words of llama.cpp's server and of vLLM's."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from proxy.tokenizer_schemas import MAX_PIECES
from sessions.texts import MAX_TOKENS
from tests.contract.conftest import RunningServer, running, shared_tokenizer

USER = {"role": "user", "content": "naïve <|im_end|>"}


@pytest.fixture(scope="module")
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.origin, timeout=20) as client:
        yield client


def asked(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http: httpx.Client, path: str, **body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
@pytest.mark.parametrize("field", ["content", "prompt"])
def test_a_text(http: httpx.Client, path: str, field: str) -> None:
    answer = asked(http, path, **{field: "naïve"}, add_special_tokens=False, model="fake", unknown=1)
    ids = shared_tokenizer().encode_text("naïve", scope="")
    assert answer == {"tokens": ids, "count": 6, "max_model_len": 8192}


def test_special_token_text_stays_text(http: httpx.Client) -> None:
    assert asked(http, "/tokenize", content="<|im_end|>")["count"] == len("<|im_end|>")
    assert refused(http, "/tokenize", content="x", parse_special=True) == "parse_special"


def test_pieces(http: httpx.Client) -> None:
    answer = asked(http, "/tokenize", content="aï", with_pieces=True)
    assert [token["piece"] for token in answer["tokens"]] == ["a", [0xC3], [0xAF]]
    assert asked(http, "/tokenize", prompt="ab", return_token_strs=True)["token_strs"] == ["a", "b"]


def test_messages(http: httpx.Client) -> None:
    answer = asked(http, "/tokenize", messages=[USER])
    usage = http.post("/v1/chat/completions", json={"model": "fake", "messages": [USER], "max_tokens": 1}).json()[
        "usage"
    ]
    assert answer["count"] == usage["prompt_tokens"]
    assert asked(http, "/tokenize", messages=[USER], add_generation_prompt=False)["count"] < answer["count"]
    assert refused(http, "/tokenize", messages=[{"role": "king", "content": "x"}]) == "messages[0].role"


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
def test_detokenize(http: httpx.Client, path: str) -> None:
    ids = asked(http, "/tokenize", content="naïve 東京")["tokens"]
    assert asked(http, path, tokens=ids) == {"content": "naïve 東京", "prompt": "naïve 東京"}
    assert asked(http, path, tokens=[])["content"] == ""


@pytest.mark.parametrize("tokens", [[10**6], [-1], "x", None, [1.5]])
def test_detokenize_what_is_none(http: httpx.Client, tokens: Any) -> None:
    assert refused(http, "/detokenize", tokens=tokens) in ("tokens", "tokens[0]")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"content": "x", "prompt": "x"}, "prompt"),
        ({"content": "", "messages": []}, "messages"),
        ({"prompt": "x", "messages": [USER]}, "messages"),
        ({"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"prompt": "x", "add_special": True, "add_special_tokens": False}, "add_special_tokens"),
        ({"messages": [USER], "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": [USER], "add_special": True}, "add_special"),
        ({"messages": [USER], "parse_special": True}, "parse_special"),
    ],
)
def test_what_says_two_things_is_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    assert refused(http, "/tokenize", **body) == param


def test_what_says_one_thing_twice_is_taken(http: httpx.Client) -> None:
    for body in ({"prompt": "x"}, {"messages": [USER]}):
        assert asked(http, "/tokenize", **body, add_special=False, add_special_tokens=False)["count"]


def test_nothing_to_tokenize(http: httpx.Client) -> None:
    assert refused(http, "/tokenize") == "prompt"
    assert http.post("/tokenize", json={"content": "x", "model": "other"}).status_code == 404


def test_render(http: httpx.Client) -> None:
    system = {"role": "system", "content": "Be brief."}
    body = {"model": "fake", "messages": [USER, system]}
    answer = asked(http, "/v1/chat/completions/render", **body)
    assert answer["object"] == "chat.completion.render"
    assert answer["count"] == len(answer["tokens"]) == asked(http, "/tokenize", messages=body["messages"])["count"]
    assert answer["anaphora"]["moved"] == [{"from": "messages[1]", "to": "messages[0]"}]
    shown = {place["index"]: answer["prompt"][place["start"] : place["end"]] for place in answer["messages"]}
    assert shown == {0: USER["content"], 1: system["content"]}
    for place in answer["messages"]:
        ids = answer["tokens"][place["first_token"] : place["end_token"]]
        assert shared_tokenizer().decode(ids) == shown[place["index"]]


def test_render_says_what_is_spliced(server: RunningServer, http: httpx.Client) -> None:
    body = {"model": "fake", "messages": [USER], "max_tokens": 8, "seed": 3}
    reply = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    turns = [USER, reply, {"role": "user", "content": "go on"}]
    assert asked(http, "/v1/chat/completions/render", model="fake", messages=turns)["anaphora"]["spliced_messages"] == 1


def test_the_key_is_asked_for() -> None:
    with running(api_keys="acme=secret") as server, httpx.Client(base_url=server.origin) as http:
        for path in ("/tokenize", "/v1/tokenize", "/detokenize", "/v1/chat/completions/render"):
            assert http.post(path, json={"content": "x"}).status_code == 401
        answer = http.post("/tokenize", json={"content": "x"}, headers={"authorization": "Bearer secret"})
        assert answer.status_code == 200


def test_what_is_too_long_to_be_told_in_pieces(http: httpx.Client) -> None:
    """In the words of who asked; the ids alone are told."""
    content = "x" * (MAX_PIECES + 1)
    for asked_for in ("with_pieces", "return_token_strs"):
        assert refused(http, "/tokenize", content=content, **{asked_for: True}) == asked_for
    assert asked(http, "/tokenize", content=content)["count"] == MAX_PIECES + 1
    for field in ("content", "prompt"):
        assert refused(http, "/tokenize", **{field: "x" * (MAX_TOKENS + 1)}) == field
    assert refused(http, "/detokenize", tokens=[0] * (MAX_TOKENS + 1)) == "tokens"
