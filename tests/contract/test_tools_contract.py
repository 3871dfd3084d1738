"""Tools through the official client: whole and streamed, sync and async, its `.stream()` and `.parse()` helpers."""

import json
from typing import Any, Literal

import openai
import pytest
from jsonschema import validate
from openai import AsyncOpenAI, OpenAI
from openai.lib._tools import pydantic_function_tool
from pydantic import BaseModel

from tests.contract.conftest import RunningServer

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


class Weather(BaseModel):
    """Ask for the weather."""

    unit: Literal["celsius", "fahrenheit"]
    days: Literal[1, 2, 3]


WEATHER = pydantic_function_tool(Weather, name="get_weather")
NOW: Any = {"type": "function", "function": {"name": "now"}}
TOOLS: list[Any] = [WEATHER, NOW]
SCHEMA: Any = WEATHER["function"]["parameters"]  # type: ignore[typeddict-item]


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def ask(client: OpenAI, **parameters: Any) -> Any:
    defaults: dict[str, Any] = {"messages": HELLO, "tools": TOOLS, "temperature": 1, "max_tokens": 400}
    return client.chat.completions.create(model="fake", **(defaults | parameters))


def calls(reply: Any) -> list[tuple[str, Any]]:
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    made = choice.message.tool_calls
    assert len({call.id for call in made}) == len(made) and all(call.id.startswith("call_") for call in made)
    return [(call.function.name, json.loads(call.function.arguments)) for call in made]


@pytest.mark.parametrize("seed", range(4))
def test_a_named_function_is_called_with_arguments_that_match(client: OpenAI, seed: int) -> None:
    [(name, arguments)] = calls(ask(client, tool_choice=named("get_weather"), seed=seed))
    assert name == "get_weather"
    validate(arguments, SCHEMA)


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_required_makes_a_call_at_any_temperature(client: OpenAI, temperature: float) -> None:
    made = calls(ask(client, tool_choice="required", parallel_tool_calls=False, temperature=temperature))
    assert len(made) == 1
    for name, arguments in made:
        validate(arguments, SCHEMA if name == "get_weather" else {"type": "object", "maxProperties": 0})


@pytest.mark.parametrize("cut", [{"max_tokens": 5}, {"max_tokens": 14}, {"stop": "name"}, {"stop": "\n"}])
def test_a_call_that_is_cut_before_its_name_is_nobody_s_text(client: OpenAI, cut: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"tool_choice": "required"} | cut
    choice = ask(client, **asked).choices[0]
    assert not choice.message.content and not choice.message.tool_calls
    assert choice.finish_reason == ("length" if "max_tokens" in cut else "stop")
    chunks = list(ask(client, **asked, stream=True))
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    turns = [*HELLO, choice.message.to_dict(), {"role": "user", "content": "go on"}]
    assert calls(ask(client, messages=turns, tool_choice="required", parallel_tool_calls=False))


def test_allowed_tools_leave_the_prompt_as_it_is(client: OpenAI) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("now")]}}
    free = ask(client, tool_choice="none", max_tokens=1)
    reply = ask(client, tool_choice=allowed, parallel_tool_calls=False)
    assert calls(reply) == [("now", {})]
    assert reply.usage.prompt_tokens == free.usage.prompt_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= reply.usage.prompt_tokens - 1


def test_none_is_text(client: OpenAI) -> None:
    [choice] = ask(client, tool_choice="none", max_tokens=8, extra_body={"ignore_eos": True}).choices
    assert choice.message.tool_calls is None and isinstance(choice.message.content, str)


def test_auto_may_say_text(client: OpenAI) -> None:
    [choice] = ask(client, tools=[NOW], max_tokens=8, extra_body={"ignore_eos": True}).choices
    assert choice.finish_reason == "length" and choice.message.content


def test_n_choices_call_each_for_itself(client: OpenAI) -> None:
    reply = ask(client, tool_choice=named("get_weather"), n=3)
    assert len({choice.message.tool_calls[0].id for choice in reply.choices}) == 3
    assert {choice.finish_reason for choice in reply.choices} == {"tool_calls"}


def test_a_stream_says_id_and_name_once_and_arguments_in_pieces(client: OpenAI) -> None:
    chunks = list(ask(client, tool_choice=named("get_weather"), stream=True, n=2))
    for index in range(2):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        pieces = [piece for choice in choices for piece in choice.delta.tool_calls or ()]
        assert all(len(choice.delta.tool_calls or ()) <= 1 for choice in choices)
        assert [piece.id is not None for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        assert [piece.function.name for piece in pieces] == ["get_weather"] + [None] * (len(pieces) - 1)
        assert pieces[0].type == "function" and {piece.index for piece in pieces} == {0} and len(pieces) > 2
        validate(json.loads("".join(piece.function.arguments for piece in pieces)), SCHEMA)
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
        assert all(choice.delta.content is None for choice in choices)


def test_the_stream_helper_parses_arguments(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model="fake", messages=HELLO, tools=[WEATHER], tool_choice=named("get_weather"), max_tokens=400
    ) as stream:
        events = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= events
    [call] = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    assert completion.choices[0].message.content is None


def test_parse_gives_arguments_as_models(client: OpenAI) -> None:
    completion = client.chat.completions.parse(
        model="fake", messages=HELLO, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=400
    )
    [call] = completion.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


async def test_the_async_client_whole_and_streamed(server: RunningServer) -> None:
    client: AsyncOpenAI
    async with server.async_client() as client:
        asked: dict[str, Any] = {"model": "fake", "messages": HELLO, "tools": TOOLS, "max_tokens": 400, "seed": 5}
        whole = await client.chat.completions.create(**asked, tool_choice=named("get_weather"))
        async with client.chat.completions.stream(**asked, tool_choice=named("get_weather")) as stream:
            streamed = await stream.get_final_completion()
    [one], [other] = whole.choices[0].message.tool_calls or [], streamed.choices[0].message.tool_calls or []
    assert one.type == other.type == "function"
    assert one.function.arguments == other.function.arguments


def test_null_empty_and_absent_content_are_the_same(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    counts = set()
    for content in ({"content": None}, {"content": ""}, {}):
        messages = [*HELLO, {"role": "assistant", "tool_calls": [call], **content}]
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": "noon"})
        counts.add(ask(client, messages=messages, max_tokens=1, tool_choice="none").usage.prompt_tokens)
    assert len(counts) == 1


UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
BAD_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}


def function(name: str, schema: Any, *, strict: bool) -> Any:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


@pytest.mark.parametrize(
    ("tools", "more", "param", "keyword"),
    [
        ([function("f", {"type": "string", "pattern": "("}, strict=False)], {"tool_choice": "required"}, 0, "pattern"),
        ([NOW, function("f", UNIQUE, strict=True)], {"tool_choice": "required"}, 1, "uniqueItems"),
        ([NOW, function("f", UNIQUE, strict=True)], {}, 1, "uniqueItems"),
        ([NOW, function("f", UNIQUE, strict=True)], {"response_format": {"type": "json_object"}}, 1, "uniqueItems"),
        ([WEATHER, NOW], {"response_format": BAD_FORMAT}, None, "not"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_a_400(
    client: OpenAI, tools: list[Any], more: Any, param: int | None, keyword: str
) -> None:
    """Which names the schema and its keyword."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, tools=tools, **more)
    blamed = "response_format.json_schema.schema" if param is None else f"tools[{param}].function.parameters"
    assert (caught.value.param, caught.value.code) == (blamed, "invalid_value")
    assert keyword in caught.value.message


def test_what_cannot_be_enforced_is_passed_over_where_nobody_asked_for_strict(client: OpenAI) -> None:
    lenient = function("f", {**UNIQUE, "maxItems": 4}, strict=False)
    [(_, arguments)] = calls(ask(client, tools=[lenient], tool_choice=named("f")))
    assert len(arguments["a"]) <= 4 and all(isinstance(number, int) for number in arguments["a"])
    assert ask(client, tools=[lenient], max_tokens=1).choices
