"""What OpenAI's client needs of answers, streams, errors and headers, where no other file of this folder has it."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai._exceptions import LengthFinishReasonError

from tests.contract.conftest import RunningServer
from tests.contract.rows import HELLO

ASKED: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 6}
FOREVER = {"ignore_eos": True}


def raw(server: RunningServer, **values: Any) -> httpx.Response:
    return httpx.post(server.origin + "/v1/chat/completions", json=ASKED | values)


def events(server: RunningServer, **values: Any) -> list[Any]:
    """The JSON of each event, each one line; `[DONE]` is the last and is left out."""
    text = raw(server, stream=True, **values).text
    *lines, done, rest = re.split(r"\n\n", text)
    assert (done, rest) == ("data: [DONE]", "")
    assert all(line.startswith("data: {") and "\n" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- answer --


def test_a_whole_answer_s_content_type_is_json(server: RunningServer) -> None:
    assert raw(server).headers["content-type"] == "application/json"


def test_every_count_that_the_sdk_knows_is_there(server: RunningServer) -> None:
    usage = raw(server).json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert {"cached_tokens", "cache_write_tokens", "audio_tokens"} <= set(usage["prompt_tokens_details"])
    assert {"reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens", "audio_tokens"} <= set(
        usage["completion_tokens_details"]
    )


def test_text_is_the_same_whole_and_streamed_whatever_its_alphabet(client: OpenAI) -> None:
    """The fake model says all kinds of bytes; what is not UTF-8 is replaced alike."""
    asked = ASKED | {"max_tokens": 200, "temperature": 0}
    whole = client.chat.completions.create(**asked, extra_body=FOREVER)
    chunks = client.chat.completions.create(**asked, extra_body=FOREVER, stream=True)
    assert whole.choices[0].message.content == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


# -- stream --


def test_events_are_one_line_each_and_end_with_done(server: RunningServer) -> None:
    chunks = events(server, ignore_eos=True)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"


def test_usage_is_null_but_in_the_last_chunk(server: RunningServer) -> None:
    *chunks, last = events(server, stream_options={"include_usage": True})
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)


def test_every_chunk_s_choices_have_an_index_and_a_delta(server: RunningServer) -> None:
    seen: list[int] = []
    for chunk in events(server, n=4, temperature=1):
        for choice in chunk["choices"]:
            assert isinstance(choice["delta"], dict)
            seen.append(choice["index"])
    assert list(dict.fromkeys(seen)) == [0, 1, 2, 3]


def test_nothing_of_a_choice_comes_after_its_finish_reason(server: RunningServer) -> None:
    finished: set[int] = set()
    for chunk in events(server, n=4, temperature=1, max_tokens=20):
        for choice in chunk["choices"]:
            assert choice["index"] not in finished
            if choice["finish_reason"] is not None:
                finished.add(choice["index"])
    assert finished == {0, 1, 2, 3}


def test_the_helper_says_when_a_length_was_reached(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASKED, extra_body=FOREVER) as stream, pytest.raises(LengthFinishReasonError):
        stream.get_final_completion()


def test_parse_without_a_format_is_an_answer(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(**ASKED | {"max_tokens": 300, "temperature": 0})
    assert parsed.choices[0].message.parsed is None


async def test_one_connection_serves_stream_after_stream(server: RunningServer) -> None:
    """The client reads on for a moment after `[DONE]`; a body that ends at once leaves it the connection."""
    ports: set[Any] = set()
    async with server.async_client() as client:
        for _ in range(3):
            async with client.chat.completions.with_streaming_response.create(**ASKED, stream=True) as response:
                ports.add(response.http_response.extensions["network_stream"].get_extra_info("client_addr"))
                async for _ in await response.parse():
                    pass
    assert len(ports) == 1


# -- errors and headers --


def test_headers_and_query_that_nobody_knows_are_ignored(server: RunningServer) -> None:
    with server.client(
        organization="org", project="proj", default_headers={"X-Odd": "1"}, default_query={"api-version": "1"}
    ) as client:
        assert client.chat.completions.create(**ASKED).choices


@pytest.mark.parametrize("path", ["/chat/completions/id", "/chat/completions/id/messages", "/files", "/embeddings"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_is_not_here_is_a_404_with_openai_s_body(client: OpenAI, method: str, path: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        getattr(client, method.lower())(path, cast_to=object)
    assert (caught.value.code, caught.value.type) == ("unknown_url", "invalid_request_error")
    assert caught.value.request_id


UNSUPPORTED: dict[str, Callable[[OpenAI], Any]] = {
    "chat.completions.list": lambda client: client.chat.completions.list(),
    "chat.completions.retrieve": lambda client: client.chat.completions.retrieve("chatcmpl-1"),
    "chat.completions.update": lambda client: client.chat.completions.update("chatcmpl-1", metadata={}),
    "chat.completions.delete": lambda client: client.chat.completions.delete("chatcmpl-1"),
    "chat.completions.messages": lambda client: client.chat.completions.messages.list("chatcmpl-1"),
    "responses.compact": lambda client: client.responses.compact(model="fake", input="x"),
    "embeddings": lambda client: client.embeddings.create(model="fake", input="x"),
    "moderations": lambda client: client.moderations.create(input="x"),
    "images": lambda client: client.images.generate(prompt="x"),
    "images.edit": lambda client: client.images.edit(image=b"x", prompt="x"),
    "audio.speech": lambda client: client.audio.speech.create(model="fake", voice="alloy", input="x"),
    "audio.transcriptions": lambda client: client.audio.transcriptions.create(model="fake", file=("a.wav", b"x")),
    "files": lambda client: client.files.list(),
    "files.create": lambda client: client.files.create(file=("a", b"x"), purpose="batch"),
    "uploads": lambda client: client.uploads.create(bytes=1, filename="a", mime_type="x", purpose="batch"),
    "batches": lambda client: client.batches.list(),
    "fine_tuning": lambda client: client.fine_tuning.jobs.list(),
    "vector_stores": lambda client: client.vector_stores.list(),
    "containers": lambda client: client.containers.list(),
    "evals": lambda client: client.evals.list(),
    "realtime": lambda client: client.realtime.client_secrets.create(),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_the_sdk_knows_and_this_server_does_not_is_a_404_in_its_words(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        UNSUPPORTED[name](client)
    assert (caught.value.code, caught.value.type, caught.value.param) == ("unknown_url", "invalid_request_error", None)


def test_the_system_fingerprint_is_the_server_s(server: RunningServer) -> None:
    whole = raw(server).json()["system_fingerprint"]
    assert re.fullmatch("fp_[0-9a-f]{12}", whole)
    chunks = events(server, stream_options={"include_usage": True})
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole}
    text = httpx.post(server.origin + "/v1/completions", json={"model": "fake", "prompt": "x"}).json()
    assert text["system_fingerprint"] == whole


def test_an_error_s_message_is_the_body_s(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"Invalid value for 'temperature': expected float <= 2") as caught:
        client.chat.completions.create(**ASKED | {"temperature": 3})
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_a_refused_request_is_not_sent_again(server: RunningServer) -> None:
    """400 is final for the client; 429 and 5xx are not, and say when (`test_overload.py`)."""
    with server.client(max_retries=3) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED | {"n": 0})
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
