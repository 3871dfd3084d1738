"""Each row of `rows.py` through the official client, strict about answers: whole, streamed, and asynchronous."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer, Serve
from tests.contract.rows import HELLO, OPTIONAL, REFUSED, TAKEN

BODY: dict[str, Any] = {"model": "fake", "messages": HELLO, "max_tokens": 2}


def body(values: dict[str, Any]) -> dict[str, Any]:
    """`BODY` without what the row says in its own way."""
    own = {"max_tokens"} if values.get("max_completion_tokens") else set()
    return {name: value for name, value in BODY.items() if name not in own} | values


def send(client: OpenAI, values: dict[str, Any], stream: bool) -> Any:
    """Values as `extra_body`, which the client does not look at."""
    sent = body(values) | ({"stream": True} if stream else {})
    return client.chat.completions.create(model="fake", messages=HELLO, stream=stream, extra_body=sent)


@pytest.mark.parametrize("row", TAKEN)
def test_what_a_row_allows_is_taken(client: OpenAI, row: str) -> None:
    for values in TAKEN[row]:
        whole = send(client, values, stream=False)
        assert len(whole.choices) == values.get("n", 1), values
        assert whole.service_tier == ("default" if "service_tier" in values else None)
        *_, last = send(client, values, stream=True)
        assert last.choices[0].finish_reason in ("stop", "length", "tool_calls"), values


@pytest.mark.parametrize("row", TAKEN)
async def test_what_a_row_allows_is_taken_from_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with server.async_client() as client:
        for values in TAKEN[row]:
            completion = await client.chat.completions.create(model="fake", messages=HELLO, extra_body=body(values))
            assert completion.choices[0].finish_reason in ("stop", "length", "tool_calls"), values


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("row", REFUSED)
def test_what_a_row_forbids_is_refused_by_name(client: OpenAI, row: str, stream: bool) -> None:
    for values, param in REFUSED[row]:
        if "stream" in values and stream:
            continue
        with pytest.raises(openai.BadRequestError) as caught:
            send(client, values, stream)
        assert caught.value.param == param, values
        assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("row", REFUSED)
async def test_what_a_row_forbids_is_refused_to_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with server.async_client() as client:
        for values, param in REFUSED[row]:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model="fake", messages=HELLO, extra_body=body(values))
            assert caught.value.param == param, values


def test_null_is_unset_for_every_optional_parameter(client: OpenAI) -> None:
    everything = dict.fromkeys(OPTIONAL)
    assert send(client, everything, stream=False).usage.completion_tokens <= 2
    assert list(send(client, everything, stream=True))


@pytest.mark.parametrize("name", ["model", "messages"])
def test_what_is_required_is_missed_by_name(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body={key: BODY[key] for key in BODY if key != name}, cast_to=object)
    assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


def test_without_a_bound_the_answer_goes_up_to_the_context(serve: Serve) -> None:
    with serve(engine={"max_model_len": 100}).client() as client:
        completion = client.chat.completions.create(model="fake", messages=HELLO, extra_body={"ignore_eos": True})
    assert completion.usage is not None
    assert (completion.usage.total_tokens, completion.choices[0].finish_reason) == (100, "length")


def test_stream_options_need_a_stream(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        send(client, {"stream_options": {"include_usage": True}}, stream=False)
    assert caught.value.param == "stream_options"
    assert list(send(client, {"stream_options": {"include_obfuscation": True}}, stream=True))
