"""The wire into sessions' values: defaults, refusals by name, checks over two fields."""

import json
from typing import Any

import msgspec
import pytest

from proxy.schemas import CHAT_DECODER
from proxy.translate import chat_request
from sessions.errors import InvalidRequest
from sessions.types import Breakpoint, CacheOptions, ChatRequest, Grammar, Message, Part, SamplingParams, Tenant

USER = {"role": "user", "content": "hello"}


def translate(vocab_size: int = 100, max_n: int = 8, **fields: Any) -> ChatRequest:
    body = msgspec.json.encode({"model": "m", "messages": [USER], **fields})
    return chat_request(CHAT_DECODER.decode(body), tenant=Tenant("alice"), max_n=max_n, vocab_size=vocab_size)


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        translate(**fields)
    return caught.value


def test_silence_is_openai_s_defaults() -> None:
    assert translate() == ChatRequest((Message("user", "hello"),), SamplingParams(), tenant=Tenant("alice"))


def test_a_function_s_answer_is_a_tool_s() -> None:
    request = translate(messages=[USER, {"role": "function", "name": "f", "content": "x"}])
    assert request.messages[1] == Message("tool", "x", "f")


def test_every_sampling_parameter_arrives() -> None:
    request = translate(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        seed=-(2**63),
        max_tokens=9,
        stop=["a", "b"],
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100, "3": 2.5},
        ignore_eos=True,
        n=3,
        cache_salt="s",
    )
    assert request.params == SamplingParams(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        seed=-(2**63),
        max_tokens=9,
        stop=("a", "b"),
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias=((3, 2.5), (7, -100)),
        ignore_eos=True,
    )
    assert (request.n, request.cache_salt) == (3, "s")


def test_top_k_minus_one_is_off_and_a_lone_stop_is_one_sequence() -> None:
    assert translate(top_k=-1).params.top_k == 0
    assert translate(stop="end").params.stop == ("end",)
    assert translate(stop="x" * 1000).params.stop == ("x" * 1000,)
    assert translate(logit_bias={"0": 1, "10": 2}).params.logit_bias == ((0, 1), (10, 2))
    assert translate(seed=2**64 - 1).params.seed == 2**64 - 1
    assert translate(max_completion_tokens=4, max_tokens=4).params.max_tokens == 4


def test_messages_of_every_role_and_form() -> None:
    request = translate(
        messages=[
            {"role": "system", "content": "s", "name": "n"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
            {"role": "assistant", "content": None, "audio": {"id": "x"}},
            {"role": "assistant"},
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}], "tool_calls": []},
            {"role": "tool", "content": "t", "tool_call_id": "call"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "c", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
                ],
            },
        ]
    )
    assert request.messages == (
        Message("system", "s"),
        Message("developer", "d"),
        Message("user", "ab"),
        Message("assistant", ""),
        Message("assistant", ""),
        Message("assistant", "no"),
        Message("assistant", "never"),
        Message("tool", "t", "call"),
        Message("user", "c", parts=(Part(0, 1, Breakpoint(1800.0)),)),
    )


MARK = {"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}}


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_marked_parts_keep_their_offsets(role: Any) -> None:
    parts = [
        {"type": "text", "text": "be "},
        {"type": "text", "text": "kind", **MARK},
        {"type": "refusal", "refusal": "!"},
        {"type": "text", "text": "", "prompt_cache_breakpoint": None},
    ]
    parts = [part for part in parts if role in ("system", "developer", "assistant") or part["type"] == "text"]
    call_id = {"tool_call_id": "call"} if role == "tool" else {}
    [message] = translate(messages=[{"role": role, "content": parts, **call_id}]).messages
    assert message.parts[:2] == (Part(0, 3), Part(3, 7, Breakpoint(43_200.0)))
    assert [part.breakpoint for part in message.parts[2:]] == [None] * (len(parts) - 2)
    assert message.content == "be kind" + "!" * (len(parts) == 4)


def test_without_a_mark_parts_and_string_are_one_and_the_same() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind", "prompt_cache_breakpoint": None}]
    [in_parts] = translate(messages=[{"role": "system", "content": parts}]).messages
    [as_string] = translate(messages=[{"role": "system", "content": "be kind"}]).messages
    assert in_parts == as_string == Message("system", "be kind")


@pytest.mark.parametrize("mark", [{}, {"mode": "implicit"}, {"mode": "explicit", "ttl": "1h"}, "explicit"])
def test_a_mark_of_another_shape_is_refused(mark: Any) -> None:
    part = {"type": "text", "text": "x", "prompt_cache_breakpoint": mark}
    with pytest.raises(msgspec.ValidationError, match="prompt_cache_breakpoint"):
        translate(messages=[{"role": "system", "content": [part]}])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"moderation": {"policy": "x"}}, "moderation"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "custom", "id": "c"}]}]},
            "messages[1].tool_calls[0].type",
        ),
        ({"messages": [USER, {"role": "assistant", "function_call": {}}]}, "messages[1].function_call"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]},
            "messages[0].content[1]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_is_not_built_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert param in error.message


def test_what_an_answer_must_look_like() -> None:
    schema = {"properties": {"b": {"type": "string"}, "a": {"enum": [1, 2.5]}}, "type": "object"}
    asked = translate(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": False}}
    )
    grammar = asked.params.grammar
    assert grammar is not None and grammar.param == "response_format.json_schema.schema"
    assert list(json.loads(grammar.source).items()) == list(schema.items()), "the order of keys is the answer's"
    any_object = Grammar("json_schema", '{"type":"object"}')
    for wire in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}):
        assert translate(response_format=wire).params.grammar == any_object
    assert translate(response_format={"type": "text"}).params.grammar is None


def test_what_is_said_of_the_cache() -> None:
    explicit = translate(prompt_cache_options={"mode": "explicit", "ttl": "30m"}, prompt_cache_key="k")
    assert explicit.cache == CacheOptions(is_explicit=True, ttl_s=1800.0, group="k")
    assert translate(prompt_cache_retention="24h").cache == CacheOptions(ttl_s=86_400.0)
    assert translate(anaphora={"priority": "low"}).cache == CacheOptions(priority="low")
    assert not translate(anaphora={"splice": False}).splice and translate(anaphora={}).splice
    with pytest.raises(msgspec.ValidationError, match="splic"):
        translate(anaphora={"splic": True})


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"chat_template_kwargs": {}},
        {"response_format": {"type": "text"}},
        {"logprobs": False},
        {"modalities": ["text"]},
        {"repetition_penalty": 1.0},
        {"prompt_cache_options": {"mode": "implicit"}},
        {"parallel_tool_calls": False},
        {"metadata": {"k": "v"}, "store": True, "user": "u", "safety_identifier": "s"},
        {"service_tier": "flex", "verbosity": "low"},
        {"prompt_cache_retention": "in_memory"},
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert translate(**fields) == translate()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 9}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"100": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 5, "01": 1}}, "logit_bias"),
        ({"logit_bias": {"+1": 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
    ],
)
def test_what_two_fields_say_together(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, "invalid_value")
