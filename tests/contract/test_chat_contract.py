"""The official client against a real server: each row of the chat parameters that is built, whole and streamed."""

from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.contract.conftest import RunningServer

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def ask(client: OpenAI, messages: list[Any] = HELLO, **parameters: Any) -> ChatCompletion:
    defaults: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    extra = {key: parameters.pop(key) for key in ("top_k", "min_p", "ignore_eos", "cache_salt") if key in parameters}
    return client.chat.completions.create(model="fake", messages=messages, extra_body=extra, **(defaults | parameters))


def text(completion: ChatCompletion, choice: int = 0) -> str:
    content = completion.choices[choice].message.content
    assert content is not None
    return content


def streamed(client: OpenAI, messages: list[Any] = HELLO, **parameters: Any) -> list[ChatCompletionChunk]:
    defaults: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    return list(client.chat.completions.create(model="fake", messages=messages, stream=True, **(defaults | parameters)))


def joined(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == choice)


# -- the whole answer --


def test_a_whole_answer_has_every_field(client: OpenAI) -> None:
    completion = ask(client, ignore_eos=True)
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "fake"
    assert completion.service_tier is None
    [choice] = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    usage = completion.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    cached, written = usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.cache_write_tokens
    assert cached is not None
    assert written == usage.prompt_tokens - cached


def test_ids_are_unique(client: OpenAI) -> None:
    assert len({ask(client, max_tokens=1).id for _ in range(5)}) == 5


def test_the_next_turn_pays_only_for_its_new_tokens(client: OpenAI) -> None:
    """Its prompt up to the reply was computed before; the tail of the last block counts too."""
    first = ask(client, [{"role": "user", "content": "a question of some length, to fill blocks"}])
    again = ask(client, [{"role": "user", "content": "a question of some length, to fill blocks"}])
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert text(first) == text(again)


def test_every_form_of_content_means_the_same(client: OpenAI) -> None:
    as_string = ask(client)
    as_parts = ask(
        client,
        [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "name": "n"}],
    )
    assert text(as_string) == text(as_parts)
    assert as_string.usage is not None
    assert as_parts.usage is not None
    assert as_string.usage.prompt_tokens == as_parts.usage.prompt_tokens


def test_developer_is_system(client: OpenAI) -> None:
    both = [ask(client, [{"role": role, "content": "be brief"}, *HELLO]) for role in ("system", "developer")]
    assert text(both[0]) == text(both[1])


def test_null_and_empty_assistant_content_are_the_same(client: OpenAI) -> None:
    answers = {text(ask(client, [*HELLO, {"role": "assistant", "content": empty}, *HELLO])) for empty in (None, "")}
    assert len(answers) == 1


def test_a_tool_message_is_taken(client: OpenAI) -> None:
    assert ask(client, [*HELLO, {"role": "tool", "content": "4", "tool_call_id": "call"}]).choices


def test_max_completion_tokens_is_max_tokens(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="fake", messages=HELLO, temperature=0, max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert completion.usage is not None
    assert (completion.usage.completion_tokens, completion.choices[0].finish_reason) == (3, "length")


def test_a_seed_repeats_and_another_differs(client: OpenAI) -> None:
    first, again, other = (text(ask(client, temperature=1, seed=seed)) for seed in (2**63 - 1, 2**63 - 1, -5))
    assert first == again
    assert isinstance(other, str)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 2},
        {"top_p": 0.1},
        {"top_k": 5},
        {"min_p": 0.2},
        {"presence_penalty": 2},
        {"frequency_penalty": -2},
        {"logit_bias": {"65": 100}},
        {"cache_salt": "mine"},
        {"service_tier": "flex"},
        {"metadata": {"k": "v"}, "store": True, "user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"verbosity": "low", "reasoning_effort": "minimal", "prompt_cache_retention": "24h"},
        {"modalities": ["text"], "parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"prediction": {"type": "content", "content": "hello"}},
        {"tool_choice": "none"},
        {"logprobs": False},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_a_parameter_is_taken(client: OpenAI, parameters: dict[str, Any]) -> None:
    completion = ask(client, **parameters)
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.service_tier == ("default" if "service_tier" in parameters else None)


def test_n_choices_and_their_usage(client: OpenAI) -> None:
    completion = ask(client, n=3, temperature=1, seed=7, ignore_eos=True)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 36


def test_stop_ends_before_the_sequence(client: OpenAI) -> None:
    whole = text(ask(client, ignore_eos=True, max_tokens=40))
    stop = next(character for character in whole[5:] if character.isprintable() and character != "\ufffd")
    expected = whole[: whole.index(stop)]
    stopped = ask(client, ignore_eos=True, max_tokens=40, stop=[stop, "never this"])
    assert text(stopped) == expected
    assert stopped.choices[0].finish_reason == "stop"
    assert joined(streamed(client, max_tokens=40, stop=stop, extra_body={"ignore_eos": True})) == expected


def test_a_cache_salt_shares_with_nobody_else(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "a prompt that several salts ask for, one after the other"}]

    def cached(salt: str) -> int:
        usage = ask(client, messages, cache_salt=salt).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached("one") == 0
    assert cached("two") == 0
    assert cached("one") > 0


# -- the stream --


def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI) -> None:
    whole = ask(client, ignore_eos=True)
    chunks = streamed(client, extra_body={"ignore_eos": True})
    assert joined(chunks) == text(whole)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", *[None] * (len(chunks) - 1)]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_and_only_when_asked(client: OpenAI) -> None:
    chunks = streamed(client, stream_options={"include_usage": True, "include_obfuscation": False})
    *content, last = chunks
    assert all(chunk.usage is None for chunk in content)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert last.usage.prompt_tokens_details is not None


def test_choices_of_a_stream_begin_in_order(client: OpenAI) -> None:
    chunks = streamed(client, n=3, temperature=1, seed=1)
    first_seen = list(dict.fromkeys(choice.index for chunk in chunks for choice in chunk.choices))
    assert first_seen == [0, 1, 2]
    finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(finished) == [0, 1, 2]


def test_the_sdk_s_stream_helper_assembles_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="fake", messages=HELLO, temperature=0, max_tokens=200, stream_options={"include_usage": True}, n=2
    ) as stream:
        for _ in stream:
            pass
        snapshot = stream.current_completion_snapshot
    assert [choice.index for choice in snapshot.choices] == [0, 1]
    assert snapshot.choices[0].message.content == text(ask(client, max_tokens=200))
    assert snapshot.usage is not None


async def test_the_asynchronous_client_streams(server: RunningServer, client: OpenAI) -> None:
    async with server.async_client() as asynchronous:
        assert isinstance(asynchronous, AsyncOpenAI)
        stream = await asynchronous.chat.completions.create(
            model="fake", messages=HELLO, temperature=0, max_tokens=12, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        whole = await asynchronous.chat.completions.create(model="fake", messages=HELLO, temperature=0, max_tokens=12)
    assert "".join(pieces) == whole.choices[0].message.content == text(ask(client))


def test_a_request_id_is_on_answers_and_streams(client: OpenAI) -> None:
    assert ask(client)._request_id
    sent = client.with_options(default_headers={"x-request-id": "my-own.id:1"})
    assert ask(sent)._request_id == "my-own.id:1"
    with client.chat.completions.with_streaming_response.create(
        model="fake", messages=HELLO, stream=True, max_tokens=2
    ) as response:
        assert response.headers["x-request-id"]
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        response.read()


@pytest.mark.parametrize("sent", ["x" * 129, "two words", "a\tb", ""])
def test_an_unfit_request_id_is_replaced(client: OpenAI, sent: str) -> None:
    answered = ask(client.with_options(default_headers={"x-request-id": sent}))._request_id
    assert answered
    assert answered != sent


# -- models --


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "anaphora"


@pytest.mark.parametrize("name", ["other", "org/name", "fak"])
def test_another_model_is_not_found(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(name)
    assert caught.value.code == "model_not_found"


def test_a_right_prediction_is_accepted_and_changes_nothing(client: OpenAI) -> None:
    plain = ask(client, max_tokens=24, ignore_eos=True)
    text = plain.choices[0].message.content
    assert text is not None
    predicted = ask(
        client, max_tokens=24, ignore_eos=True, cache_salt="apart", prediction={"type": "content", "content": text}
    )
    assert predicted.choices[0].message.content == text
    assert plain.usage is not None and predicted.usage is not None
    details = predicted.usage.completion_tokens_details
    assert details is not None and details.accepted_prediction_tokens is not None
    assert details.accepted_prediction_tokens > 0
