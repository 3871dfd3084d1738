"""Logprobs of chat completions, whole and streamed, as the openai client sees them."""

import math
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer, running
from tests.fakes import fake_logprob

ASK: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "seed": 1}


def shown(tokens: Any) -> bytes:
    return b"".join(bytes(token.bytes) for token in tokens if token.bytes is not None)


def test_logprobs_and_top_logprobs(client: OpenAI) -> None:
    choice = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert choice.logprobs.refusal is None
    assert choice.message.content is not None
    assert shown(choice.logprobs.content).decode("utf-8", "replace").startswith(choice.message.content)
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        first = token.top_logprobs[0]  # with the fake model the drawn token is the likeliest
        assert (first.token, first.logprob, first.bytes) == (token.token, token.logprob, token.bytes)
        assert token.bytes is None or math.isclose(token.logprob, logprob_of(token.bytes))


def logprob_of(written: list[int]) -> float:
    from tests.contract.conftest import shared_tokenizer

    tokenizer = shared_tokenizer()
    token_id = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes.of(i) == bytes(written))
    return fake_logprob(token_id)


def test_logprobs_without_top_logprobs(client: OpenAI) -> None:
    choice = client.chat.completions.create(**ASK, logprobs=True).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content
    assert all(token.top_logprobs == [] for token in choice.logprobs.content)


@pytest.mark.parametrize("parameters", [{}, {"logprobs": False}, {"logprobs": None, "top_logprobs": None}])
def test_no_logprobs_where_none_are_asked_for(client: OpenAI, parameters: dict[str, Any]) -> None:
    assert client.chat.completions.create(**ASK, **parameters).choices[0].logprobs is None


def test_streamed_logprobs_are_those_of_the_whole_answer_and_come_with_their_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2).choices[0]
    assert whole.logprobs is not None
    tokens: list[Any] = []
    text = ""
    for chunk in client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2, stream=True):
        (choice,) = chunk.choices
        text += choice.delta.content or ""
        if choice.logprobs is not None:
            tokens += choice.logprobs.content or []
        if choice.finish_reason is None:
            assert shown(tokens).decode("utf-8", "replace").startswith(text)
    assert [token.model_dump() for token in tokens] == [token.model_dump() for token in whole.logprobs.content or ()]


def test_every_choice_has_its_own(client: OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, logprobs=True, n=3)
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content
        assert choice.message.content is not None
        assert shown(choice.logprobs.content).decode("utf-8", "replace").startswith(choice.message.content)


def test_the_stream_helper_gathers_them(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASK, logprobs=True) as stream:
        final = None
        for event in stream:
            if event.type == "chunk":
                final = event.snapshot.choices[0] if event.snapshot.choices else final
    assert final is not None and final.logprobs is not None and final.logprobs.content


async def test_logprobs_async(server: RunningServer) -> None:
    async with server.async_client() as client:
        answer = await client.chat.completions.create(**ASK, logprobs=True)
        assert answer.choices[0].logprobs is not None
        stream = await client.chat.completions.create(**ASK, logprobs=True, stream=True)
        assert any([chunk.choices[0].logprobs is not None async for chunk in stream])


def test_tokens_of_a_stop_string_are_not_shown(client: OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, logprobs=True).choices[0]
    assert whole.message.content is not None and whole.logprobs is not None and whole.logprobs.content is not None
    readable = [token.token for token in whole.logprobs.content if token.token.isascii() and token.token.isalnum()]
    assert readable, "the fake model says some letter"
    cut = client.chat.completions.create(**ASK, logprobs=True, stop=readable[-1]).choices[0]
    assert cut.finish_reason == "stop" and cut.logprobs is not None
    assert cut.message.content == whole.message.content[: whole.message.content.index(readable[-1])]
    assert shown(cut.logprobs.content).decode("utf-8", "replace") == cut.message.content


@pytest.mark.parametrize("count", [-1, 21])
def test_top_logprobs_out_of_bounds(client: OpenAI, count: int) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, logprobs=True, top_logprobs=count)
    assert caught.value.param == "top_logprobs"


def test_seed_does_not_depend_on_batch_neighbours(client: OpenAI) -> None:
    """Choice 0 of many is the choice of one."""
    alone = client.chat.completions.create(**ASK, logprobs=True).choices[0]
    among = client.chat.completions.create(**ASK, logprobs=True, n=5).choices[0]
    assert alone.model_dump() == among.model_dump()


def test_n_up_to_128_shares_the_prompt() -> None:
    with running() as server, server.client() as client:
        answer = client.chat.completions.create(
            **ASK | {"max_tokens": 1, "messages": [{"role": "user", "content": "word " * 200}]}, n=128
        )
        assert [choice.index for choice in answer.choices] == list(range(128))
        assert server.stats().prompt_tokens - server.stats().prefix_cache_hits < 2 * answer.usage.prompt_tokens  # type: ignore[union-attr]
