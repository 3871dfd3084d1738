"""The parameters of /v1/completions, row by row, whole and streamed, from both clients.

`test_completions_contract.py` goes deeper. The strict client takes whole answers; of a stream's chunks it demands a
finish reason that OpenAI does not send either, so streams are read by one that is not strict.
"""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.contract.conftest import RunningServer, shared_tokenizer

IDS = [int(token_id) for token_id in shared_tokenizer().encode_text("def add(", scope="")]

TAKEN: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"prompt": "x"}, {"prompt": ["x", "y"]}, {"prompt": IDS}, {"prompt": [IDS, IDS]}],
    "max_tokens": [{"max_tokens": 1}, {"max_tokens": None}, {"max_tokens": 0, "echo": True}],
    "temperature, top_p, seed": [{"temperature": 2}, {"top_p": 0.5}, {"seed": -(2**63)}, {"seed": 2**63 - 1}],
    "n": [{"n": 3}, {"n": 2, "prompt": ["x", "y"]}],
    "stop": [{"stop": "q"}, {"stop": ["q", "r", "s", "t"]}, {"stop": []}],
    "logprobs": [{"logprobs": 0}, {"logprobs": 5}],
    "echo": [{"echo": True}, {"echo": False}, {"echo": True, "n": 2}],
    "frequency_penalty, presence_penalty, logit_bias": [
        {"frequency_penalty": 2}, {"presence_penalty": -2}, {"logit_bias": {"65": -100}},
    ],
    "suffix, best_of": [{"suffix": None}, {"suffix": ""}, {"best_of": 1}, {"best_of": 2, "n": 2}],
    "user": [{"user": "u"}],
    "unknown keys": [{"nonsense": {"deep": [1]}, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}],
}  # fmt: skip

REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "prompt": [({"prompt": value}, "prompt") for value in ([], {}, ["x", 1], [10**7], [-1])],
    "max_tokens": [({"max_tokens": value}, "max_tokens") for value in (-1, 0, "9", 1.5)],
    "temperature, top_p, seed": [
        ({"temperature": 2.1}, "temperature"), ({"top_p": 2}, "top_p"), ({"seed": 0.5}, "seed"),
    ],
    "n": [({"n": value}, "n") for value in (0, 129, "1")],
    "stop": [({"stop": ["q"] * 5}, "stop"), ({"stop": 7}, "stop")],
    "logprobs": [({"logprobs": value}, "logprobs") for value in (-1, 6, True)],
    "echo": [({"echo": "x"}, "echo")],
    "frequency_penalty, presence_penalty, logit_bias": [
        ({"frequency_penalty": 3}, "frequency_penalty"), ({"presence_penalty": -3}, "presence_penalty"),
        ({"logit_bias": {"999": 1}}, "logit_bias"), ({"logit_bias": {"65": 101}}, "logit_bias"),
    ],
    "suffix, best_of": [({"suffix": "x"}, "suffix"), ({"best_of": 2}, "best_of")],
    "user": [({"user": 7}, "user")],
    "unknown keys": [({"top_k": value}, "top_k") for value in (-2, 2**31, 10**30)],
    "model": [({"model": ""}, "model"), ({"model": None}, "model")],
}  # fmt: skip


@pytest.fixture
def loose(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.origin + "/v1", api_key="none", max_retries=0, timeout=20) as connected:
        yield connected


def body(values: dict[str, Any]) -> dict[str, Any]:
    return {"max_tokens": 4, "temperature": 0, "ignore_eos": True} | values


def texts(chunks: list[Any], num_choices: int) -> list[str]:
    said = [""] * num_choices
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.text
    assert sum(choice.finish_reason is not None for chunk in chunks for choice in chunk.choices) == num_choices
    return said


@pytest.mark.parametrize("row", TAKEN)
def test_what_a_row_allows_is_taken(loose: OpenAI, row: str) -> None:
    for values in TAKEN[row]:
        asked: dict[str, Any] = {"model": "fake", "prompt": "hello"}
        whole = loose.completions.create(**asked, extra_body=body(values))
        stream = loose.completions.create(**asked, stream=True, extra_body=body(values) | {"stream": True})
        assert texts(list(stream), len(whole.choices)) == [choice.text for choice in whole.choices], values


@pytest.mark.parametrize("row", TAKEN)
async def test_what_a_row_allows_is_taken_from_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with AsyncOpenAI(base_url=server.origin + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        for values in TAKEN[row]:
            asked: dict[str, Any] = {"model": "fake", "prompt": "hello"}
            whole = await client.completions.create(**asked, extra_body=body(values))
            stream = await client.completions.create(**asked, stream=True, extra_body=body(values) | {"stream": True})
            chunks = [chunk async for chunk in stream]
            assert texts(chunks, len(whole.choices)) == [choice.text for choice in whole.choices], values


def test_whole_answers_are_what_the_strict_client_expects(client: OpenAI) -> None:
    for rows in TAKEN.values():
        for values in rows:
            if not (values.get("echo") and values.get("logprobs")):
                assert client.completions.create(model="fake", prompt="hello", extra_body=body(values)).usage


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("row", REFUSED)
def test_what_a_row_forbids_is_refused_by_name(client: OpenAI, row: str, stream: bool) -> None:
    for values, param in REFUSED[row]:
        sent = body(values) | ({"stream": True} if stream else {})
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="fake", prompt="hello", stream=stream, extra_body=sent)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error"), values


@pytest.mark.parametrize("row", REFUSED)
async def test_what_a_row_forbids_is_refused_to_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with server.async_client() as client:
        for values, param in REFUSED[row]:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.completions.create(model="fake", prompt="hello", extra_body=body(values))
            assert caught.value.param == param, values
