"""The parameters of /v1/responses, row by row: what is taken, what is refused, whole and streamed, from both clients.

Named after the table of OpenAI's client; `test_responses_*.py` go deeper into some. Values go past the client's types.
"""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer
from tests.contract.test_response_event_rows import check_events

TEXT = {"type": "input_text", "text": "hello"}
TOOL = {"type": "function", "name": "f", "strict": True,
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}  # fmt: skip
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "4"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}


def formatted(**fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA} | fields}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": list(parts)}]}


TAKEN: dict[str, list[dict[str, Any]]] = {
    "input": [
        {"input": "x"},
        user(TEXT, TEXT),
        *({"input": [{"role": role, "content": "x"}, {"role": "user", "content": "y"}]}
          for role in ("user", "system", "developer", "assistant")),
        {"input": [CALL, OUTPUT]},
        {"input": [CALL, OUTPUT | {"output": [TEXT]}]},
        {"input": [{"type": "reasoning", "id": "rs_1", "summary": []}, {"role": "user", "content": "y"}]},
    ],
    "instructions": [{"instructions": "Be brief."}, {"instructions": ""}],
    "max_output_tokens": [{"max_output_tokens": 1}, {"max_output_tokens": 16}],
    "temperature, top_p": [{"temperature": 0}, {"temperature": 2}, {"top_p": 0}, {"top_p": 1}],
    "tools, tool_choice": [
        {"tools": []},
        *({"tools": [TOOL], "tool_choice": choice}
          for choice in ("none", "auto", "required", {"type": "function", "name": "f"}, ALLOWED)),
    ],
    "text.format": [
        {"text": {"format": {"type": "text"}}}, {"text": {"format": {"type": "json_object"}}}, formatted(),
        formatted(strict=True, description="d"), {"text": {}},
    ],
    "store": [{"store": True}, {"store": False}],
    "parallel_tool_calls": [{"parallel_tool_calls": False}, {"parallel_tool_calls": True}],
    "truncation": [{"truncation": "auto"}, {"truncation": "disabled"}],
    "include, top_logprobs": [
        {"include": []}, {"include": ["message.output_text.logprobs"], "top_logprobs": 3}, {"top_logprobs": 0},
        {"include": ["reasoning.encrypted_content"]},
    ],
    "metadata": [{"metadata": {}}, {"metadata": {str(key): "v" * 512 for key in range(16)}}],
    "prompt_cache_key, prompt_cache_options, prompt_cache_retention": [
        {"prompt_cache_key": "k"}, {"prompt_cache_retention": "24h"}, {"prompt_cache_retention": "in_memory"},
        {"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}, {"prompt_cache_options": {}},
    ],
    "user, safety_identifier, service_tier": [
        {"user": "u"}, {"safety_identifier": "s"}, *({"service_tier": tier} for tier in ("auto", "flex", "priority")),
    ],
    "reasoning.effort": [{"reasoning": {"effort": effort}} for effort in ("none", "minimal", "low", "high", "max")],
    "text.verbosity": [{"text": {"verbosity": value}} for value in ("low", "medium", "high")],
    "background, conversation, prompt": [{"background": False}, {"conversation": None, "prompt": None}],
    "unknown keys": [{"nonsense": {"deep": [1, None]}, "top_k": 5, "min_p": 0.1, "seed": 2**64 - 1}],
}  # fmt: skip

OPTIONAL = (
    "instructions", "previous_response_id", "conversation", "max_output_tokens", "temperature", "top_p", "tools",
    "tool_choice", "text", "store", "parallel_tool_calls", "truncation", "include", "top_logprobs", "metadata",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "user", "safety_identifier", "service_tier",
    "reasoning", "background", "prompt", "max_tool_calls", "context_management", "moderation", "stream_options",
)  # fmt: skip

REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "input": [
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [OUTPUT]}, "input[0].call_id"),
    ],
    "image inputs": [
        (user({"type": "input_image", "detail": "auto", "image_url": "data:,"}), "input[0].content[0]"),
        (user(TEXT, {"type": "input_file", "file_id": "f"}), "input[0].content[1]"),
    ],
    "model": [({"model": ""}, "model"), ({"model": None}, "model")],
    "max_output_tokens": [({"max_output_tokens": value}, "max_output_tokens") for value in (0, -1, "9", 1.5)],
    "temperature, top_p": [({"temperature": 2.1}, "temperature"), ({"top_p": -0.1}, "top_p")],
    "tools, tool_choice": [
        ({"tools": [TOOL], "tool_choice": "odd"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ],
    "hosted tools": [
        ({"tools": [{"type": kind}]}, "tools[0].type")
        for kind in ("web_search", "file_search", "computer_use_preview", "mcp", "image_generation", "shell", "custom")
    ],
    "text.format": [
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        (formatted(schema={"type": "odd"}), "text.format.schema"),
    ],
    "truncation": [({"truncation": "odd"}, "truncation")],
    "include, top_logprobs": [({"include": ["odd"]}, "include[0]"), ({"top_logprobs": 21}, "top_logprobs")],
    "metadata": [({"metadata": {"k": 7}}, "metadata")],
    "service_tier, reasoning.effort, text.verbosity": [
        ({"service_tier": "odd"}, "service_tier"),
        ({"reasoning": {"effort": "odd"}}, "reasoning.effort"),
        ({"text": {"verbosity": "odd"}}, "text.verbosity"),
    ],
    "background, prompt, max_tool_calls, context_management, moderation, access_programs": [
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"access_programs": {"cyber": "standard"}}, "access_programs"),
    ],
    "previous_response_id, conversation": [
        ({"previous_response_id": "resp_a", "conversation": "conv_a"}, "previous_response_id"),
    ],
    "unknown keys": [
        ({"seed": 2**64}, "seed"), *(({"top_k": value}, "top_k") for value in (-2, 2**31, 10**30)),
        ({"cache_salt": ""}, "cache_salt"),
    ],
}  # fmt: skip


def body(values: dict[str, Any]) -> dict[str, Any]:
    return {"max_output_tokens": 8, "temperature": 0, "seed": 1} | values


def send(client: OpenAI, values: dict[str, Any], *, stream: bool = False) -> Any:
    sent = body(values) | ({"stream": True} if stream else {})
    return client.responses.create(model="fake", input="hello", stream=stream, extra_body=sent)


@pytest.mark.parametrize("row", TAKEN)
def test_what_a_row_allows_is_taken(client: OpenAI, row: str) -> None:
    for values in TAKEN[row]:
        whole = send(client, values)
        assert whole.status in ("completed", "incomplete") and whole.output, values
        streamed = check_events(list(send(client, values, stream=True)))
        assert [item.type for item in streamed.output] == [item.type for item in whole.output], values
        assert streamed.output_text == whole.output_text, values


@pytest.mark.parametrize("row", TAKEN)
async def test_what_a_row_allows_is_taken_from_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with server.async_client() as client:
        for values in TAKEN[row]:
            whole = await client.responses.create(model="fake", input="hello", extra_body=body(values))
            stream = await client.responses.create(model="fake", input="hello", stream=True,
                                                   extra_body=body(values) | {"stream": True})  # fmt: skip
            assert check_events([event async for event in stream]).output_text == whole.output_text, values


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("row", REFUSED)
def test_what_a_row_forbids_is_refused_by_name(client: OpenAI, row: str, stream: bool) -> None:
    for values, param in REFUSED[row]:
        with pytest.raises(openai.BadRequestError) as caught:
            send(client, values, stream=stream)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error"), values


@pytest.mark.parametrize("row", REFUSED)
async def test_what_a_row_forbids_is_refused_to_the_asynchronous_client(server: RunningServer, row: str) -> None:
    async with server.async_client() as client:
        for values, param in REFUSED[row]:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="fake", input="hello", extra_body=body(values))
            assert caught.value.param == param, values


def test_null_is_unset_for_every_optional_parameter(client: OpenAI) -> None:
    everything: dict[str, Any] = dict.fromkeys(OPTIONAL) | {"max_output_tokens": 4}
    assert send(client, everything).output
    assert list(send(client, everything, stream=True))
