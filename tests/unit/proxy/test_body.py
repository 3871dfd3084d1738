"""The body decoder: strict, one pass, faults named as OpenAI names them, nesting bounded before anything is decoded."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.body import decode_chat_request, nesting_depth
from proxy.schemas import ChatCompletionRequest
from sessions.errors import InvalidRequest

MINIMAL = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def decode(body: bytes, max_depth: int = 64, max_messages: int = 100) -> ChatCompletionRequest:
    return decode_chat_request(body, max_depth=max_depth, max_messages=max_messages)


def fault(body: Any) -> InvalidRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InvalidRequest) as caught:
        decode(raw)
    return caught.value


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": "0.7"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"stop": ["x", "x" * 1001]}, "stop[1]"),
        ({"stop": 7}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {str(token_id): 0 for token_id in range(1025)}}, "logit_bias"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {str(index): "v" for index in range(17)}}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"verbosity": "loud"}, "verbosity"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"prompt_cache_retention": "1y"}, "prompt_cache_retention"),
        ({"prompt_cache_options": {"mode": "sometimes"}}, "prompt_cache_options.mode"),
        ({"modalities": ["video"]}, "modalities[0]"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [MINIMAL["messages"][0], {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    ],
)
def test_a_fault_names_its_parameter(change: dict[str, Any], param: str) -> None:
    error = fault({**MINIMAL, **change})
    assert error.param == param
    assert error.message.endswith(".")
    assert "$" not in error.message


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(missing: str) -> None:
    error = fault({key: value for key, value in MINIMAL.items() if key != missing})
    assert (error.param, error.code) == (missing, "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b'{"model": NaN}', b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 100_000],
    ids=["cut", "text", "nan", "bytes", "surrogate", "open brackets"],
)
def test_what_is_not_json_is_refused_without_a_param(body: bytes) -> None:
    assert fault(body).param is None


def test_what_is_json_and_no_object_is_refused() -> None:
    assert fault(b"[1]").param is None


def test_null_is_unset_and_unknown_keys_are_ignored() -> None:
    nulls = dict.fromkeys(set(ChatCompletionRequest.__struct_fields__) - {"model", "messages"})
    request = decode(json.dumps({**nulls, **MINIMAL, "nonsense": {"x": [1]}}).encode())
    assert request == decode(json.dumps(MINIMAL).encode())


def test_the_number_of_messages_is_bounded() -> None:
    body = json.dumps({"model": "m", "messages": MINIMAL["messages"] * 101}).encode()
    with pytest.raises(InvalidRequest, match="At most 100 messages") as caught:
        decode(body)
    assert caught.value.param == "messages"


def test_a_long_faulty_value_is_not_quoted_at_length() -> None:
    secret = "prompt " * 1000
    assert len(fault({**MINIMAL, "service_tier": secret}).message) < 300


# -- nesting --


def depth_of(value: Any) -> int:
    """The plain definition, to compare with."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


json_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\ a\né'),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(alphabet='[]{}"\\b'), children, max_size=3)
    ),
    max_leaves=30,
)


@given(json_values, st.booleans())
def test_nesting_is_what_the_plain_definition_says(value: Any, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert nesting_depth(body) == depth_of(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_looked_at_without_an_exception(body: bytes) -> None:
    assert nesting_depth(body) <= len(body)


def test_nesting_is_bounded_in_fields_that_are_ignored() -> None:
    deep = b'{"model":"m","messages":[{"role":"user","content":"x"}],"extra":' + b"[" * 64 + b"]" * 64 + b"}"
    with pytest.raises(InvalidRequest, match="64 levels"):
        decode(deep)
    assert decode(deep, max_depth=65).model == "m"


@pytest.mark.parametrize(
    "body",
    [b"[" * 5_000_000 + b"]" * 5_000_000, b"[]" * 5_000_000, b'"' + b"[" * 10_000_000 + b'"', b"\\" * 10_000_000],
    ids=["deep", "wide", "string", "escapes"],
)
def test_ten_megabytes_are_judged_at_the_speed_of_c(body: bytes) -> None:
    started_at = time.monotonic()
    nesting_depth(body)
    assert time.monotonic() - started_at < 2, "a Python loop over the bytes would take longer"
