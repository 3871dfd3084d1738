"""What /v1/responses refuses: by name, with OpenAI's body, before anything is computed."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer
from tests.contract.test_responses_contract import ask, refusal

USER: dict[str, Any] = {"role": "user", "content": "hello"}
TOOL: dict[str, Any] = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}


def parts(*written: Any) -> dict[str, Any]:
    return {"given": [{"role": "user", "content": list(written)}]}


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
        ({"extra_body": {"access_programs": {"cyber": "standard"}}}, "access_programs"),
        ({"extra_body": {"image": {"context_compression": "auto"}}}, "image"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1].type"),
        ({"tools": [{"type": "mcp", "server_label": "m"}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        (parts({"type": "input_image", "image_url": "x", "detail": "auto"}), "input[0].content[0]"),
        (parts({"type": "input_text", "text": "x"}, {"type": "input_file", "file_id": "f"}), "input[0].content[1]"),
        (parts({"type": "input_audio", "input_audio": {}}), "input[0].content[0]"),
        ({"given": [USER, {"type": "computer_call", "id": "x"}]}, "input[1].type"),
        ({"given": [USER, {"type": "web_search_call", "id": "x"}]}, "input[1].type"),
        *(({"given": [USER | {"type": kind}]}, "input[0].type") for kind in ("", 0, [], {})),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_built_is_refused_by_name(client: OpenAI, parameters: dict[str, Any], param: str) -> None:
    error = refusal(client, openai.BadRequestError, **parameters)
    assert (error.param, error.code, error.type) == (param, "unsupported_parameter", "invalid_request_error")


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"include": ["everything"]}, "include[0]"),
        ({"metadata": {str(number): "v" for number in range(17)}}, "metadata"),
        ({"service_tier": "slow"}, "service_tier"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "robot"}}}},
            "text.format.schema",
        ),
        ({"prompt_cache_options": {"ttl": "1h"}}, "prompt_cache_options.ttl"),
        ({"extra_body": {"stream_options": {"include_obfuscation": True}}}, "stream_options"),
        ({"given": []}, "input"),
        ({"given": None}, "input"),
        ({"given": 5}, "input"),
        ({"given": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"given": [{"role": "user"}]}, "input[0].content"),
        ({"given": [USER, {"role": "user", "content": [{"type": "input_text"}]}]}, "input[1].content[0].text"),
        ({"given": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"given": [{"type": "function_call_output", "call_id": "c", "output": "4"}]}, "input[0].call_id"),
        ({"given": [{"type": "item_reference"}]}, "input[0].id"),
        ({"given": [USER] * 2049}, "input"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL | {"name": f"f{number}"} for number in range(129)]}, "tools"),
        ({"given": [{"type": "function_call", "call_id": "c", "name": "", "arguments": "{}"}]}, "input[0].name"),
        ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": 7}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.tools"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused_by_name(client: OpenAI, parameters: dict[str, Any], param: str) -> None:
    error = refusal(client, openai.BadRequestError, **parameters)
    assert (error.param, error.type) == (param, "invalid_request_error")


def test_a_streamed_refusal_has_a_real_status(client: OpenAI) -> None:
    assert refusal(client, openai.BadRequestError, stream=True, background=True).status_code == 400


def test_what_is_too_long_is_blamed_on_input(client: OpenAI) -> None:
    error = refusal(client, openai.BadRequestError, given="x" * 100_000)
    assert (error.code, error.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.input_tokens.count(model="fake", input="x" * 100_000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_another_model_is_unknown(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.create(model="gpt-6", input="hello")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(model="gpt-6", input="hello")
    with pytest.raises(openai.BadRequestError) as missing:
        client.post("/responses", body={"input": "hello"}, cast_to=dict[str, Any])
    assert missing.value.param == "model"


def test_nothing_was_computed_for_a_refusal(server: RunningServer, client: OpenAI) -> None:
    before = server.stats().prompt_tokens
    refusal(client, openai.BadRequestError, background=True)
    refusal(client, openai.NotFoundError, previous_response_id="resp_none")
    refusal(client, openai.BadRequestError, given="x" * 100_000)
    assert server.stats().prompt_tokens == before
    assert ask(client).output_text
