"""Function tools over /v1/responses: calls whole and streamed, their outputs in the next turn, and what that costs."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.contract.test_responses_contract import ask, cached, events

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME: dict[str, Any] = WEATHER | {"name": "get_time"}
ONE_CALL: dict[str, Any] = {
    "tools": [WEATHER, TIME],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_output_tokens": 200,
    "extra_body": {"ignore_eos": False},
}


def call(client: OpenAI, given: Any, **parameters: Any) -> Response:
    return ask(client, given, **(ONE_CALL | parameters))


def answered(response: Response, *more: dict[str, Any]) -> list[Any]:
    """The outputs of the response's calls, and more input."""
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "Sunny."}
        for item in response.output
        if item.type == "function_call"
    ]
    return [*outputs, *more]


def test_a_required_call_is_an_item(client: OpenAI) -> None:
    response = call(client, "Weather?")
    [item] = response.output
    assert response.status == "completed" and item.type == "function_call"
    assert item.status == "completed" and item.call_id and item.id and item.name in ("get_weather", "get_time")
    assert json.loads(item.arguments)["city"] in ("Paris", "Rome")
    assert response.tool_choice == "required" and response.parallel_tool_calls is False
    assert [tool.name for tool in response.tools] == ["get_weather", "get_time"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "get_time"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_time"}]},
    ],
    ids=["named", "allowed"],
)
def test_a_choice_is_obeyed(client: OpenAI, choice: dict[str, Any]) -> None:
    names = {call(client, f"Weather {number}?", tool_choice=choice).output[0].name for number in range(4)}  # type: ignore[union-attr]
    assert names == {"get_time"}


def test_a_call_streams_its_arguments(client: OpenAI) -> None:
    stream = events(client, "Weather?", **ONE_CALL)
    kinds = [event.type.removeprefix("response.") for event in stream]
    num_deltas = kinds.count("function_call_arguments.delta")
    assert num_deltas > 1 and kinds == [
        "created", "in_progress", "output_item.added", *["function_call_arguments.delta"] * num_deltas,
        "function_call_arguments.done", "output_item.done", "completed",
    ]  # fmt: skip
    added, done = stream[2].item, stream[-2].item
    assert (added.id, added.call_id, added.name, added.arguments) == (done.id, done.call_id, done.name, "")
    pieces = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
    assert pieces == done.arguments == stream[-3].arguments


class Place(BaseModel):
    is_city: bool


def test_the_helpers_parse_arguments(client: OpenAI) -> None:
    tool: Any = openai.pydantic_function_tool(Place, name="place")
    asked: dict[str, Any] = {"model": "fake", "input": "Where?", "tools": [tool], "tool_choice": "required"}
    item: Any = client.responses.parse(**asked, parallel_tool_calls=False).output[0]
    assert isinstance(item.parsed_arguments, Place)
    with client.responses.stream(**asked, parallel_tool_calls=False) as stream:
        for _ in stream:
            pass
        final: Any = stream.get_final_response().output[0]
    assert isinstance(final.parsed_arguments, Place)


def test_ten_turns_with_tools_recompute_one_token_each_at_most(client: OpenAI) -> None:
    response = call(client, "Weather?", temperature=1)
    for number in range(1, 11):
        last, question = response, {"role": "user", "content": f"And in {number} hours?"}
        given = answered(last, question)
        response = call(client, given, temperature=1, previous_response_id=last.id)
        assert last.usage is not None
        assert cached(response) >= last.usage.input_tokens + last.usage.output_tokens - 1
        assert response.anaphora["spliced_messages"] == number  # type: ignore[attr-defined]


def test_ten_turns_with_tools_of_a_conversation_recompute_one_token_each_at_most(client: OpenAI) -> None:
    conversation = client.conversations.create()
    response = call(client, "Weather?", conversation=conversation.id)
    for _ in range(10):
        last = response
        response = call(client, answered(last), conversation=conversation.id)
        assert last.usage is not None
        assert cached(response) >= last.usage.input_tokens + last.usage.output_tokens - 1
    kinds = [item.type for item in client.conversations.items.list(conversation.id, order="asc", limit=100)]
    assert kinds == ["message", "function_call", *["function_call_output", "function_call"] * 10]


ORPHAN: dict[str, Any] = {"type": "function_call_output", "call_id": "call_x", "output": "4"}
CALL_X: dict[str, Any] = {"type": "function_call", "call_id": "call_x", "name": "f", "arguments": "{}"}


def test_an_output_without_its_call_is_refused_where_it_comes_in(client: OpenAI) -> None:
    """Stored, it would spoil every later turn."""
    user: Any = {"role": "user", "content": "One?"}
    conversation = client.conversations.create(items=[user])
    first = ask(client, "One?")
    attempts: dict[str, Any] = {
        "input[1].call_id": lambda: ask(client, [user, ORPHAN], conversation=conversation.id),
        "input[0].call_id": lambda: ask(client, [ORPHAN, CALL_X], previous_response_id=first.id),
        "items[0].call_id": lambda: client.conversations.items.create(conversation.id, items=[ORPHAN]),  # type: ignore[list-item]
        "items[2].call_id": lambda: client.conversations.create(items=[user, user, ORPHAN]),  # type: ignore[list-item]
    }
    for param, attempt in attempts.items():
        with pytest.raises(openai.BadRequestError, match="function call output with call_id 'call_x'") as refused:
            attempt()
        assert (refused.value.param, refused.value.type) == (param, "invalid_request_error")
    assert len(client.conversations.items.list(conversation.id).data) == 1
    assert ask(client, "Two?", conversation=conversation.id).output_text


def test_an_output_whose_call_was_forgotten_is_the_conversations(client: OpenAI) -> None:
    """Until it is forgotten too; what is added meanwhile is not to blame."""
    conversation = client.conversations.create(items=[{"role": "user", "content": "One?"}, CALL_X])  # type: ignore[list-item]
    added: Any = client.conversations.items.create(conversation.id, items=[ORPHAN]).data[0]  # type: ignore[list-item]
    call_item = client.conversations.items.list(conversation.id, order="asc").data[1]
    assert call_item.id
    client.conversations.items.delete(call_item.id, conversation_id=conversation.id)
    client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Two?"}])
    with pytest.raises(openai.BadRequestError, match="call_x") as refused:
        ask(client, "Three?", conversation=conversation.id)
    assert refused.value.param == "conversation"
    client.conversations.items.delete(added.id, conversation_id=conversation.id)
    assert ask(client, "Three?", conversation=conversation.id).output_text


def test_a_history_sent_back_is_the_stored_one(client: OpenAI) -> None:
    first = call(client, "Weather?")
    history: list[Any] = [{"role": "user", "content": "Weather?"}, *(item.to_dict() for item in first.output)]
    stored = call(client, answered(first), previous_response_id=first.id)
    sent = call(client, [*history, *answered(first)])
    assert sent.usage is not None and stored.usage is not None
    assert sent.usage.input_tokens == stored.usage.input_tokens
    assert sent.output[0].arguments == stored.output[0].arguments  # type: ignore[union-attr]


def test_changed_tools_are_what_a_comparison_says(client: OpenAI) -> None:
    first = call(client, "Weather?")
    options = {"comparison_response_id": first.id}
    diagnostics: Any = call(client, "Weather?", tools=[WEATHER], prompt_cache_options=options).prompt_cache_diagnostics
    assert (diagnostics.type, diagnostics.reason) == ("cache_miss", "tools_changed")


@pytest.mark.parametrize("endpoint", ["responses", "chat"])
def test_a_whole_number_with_a_fraction_is_the_one_that_was_said(client: OpenAI, endpoint: str) -> None:
    """Clients parse arguments and write them again: `1` and `1.0` are one number, in JavaScript in any case."""
    days = {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}
    tool = WEATHER | {"parameters": days | {"required": ["days"], "additionalProperties": False}}
    first: Any = call(client, "Weather?", tools=[tool])
    [made] = first.output
    arguments = json.dumps({"days": float(json.loads(made.arguments)["days"])})
    assert arguments.endswith(".0}")
    if endpoint == "responses":
        history = [{"role": "user", "content": "Weather?"}, made.to_dict() | {"arguments": arguments}]
        again: Any = call(client, [*history, *answered(first)], tools=[tool], store=False)
    else:
        function = {"name": tool["name"], "arguments": arguments}
        again = client.chat.completions.create(
            model="fake",
            messages=[
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "tool_calls": [{"id": made.call_id, "type": "function", "function": function}]},  # type: ignore[list-item]
                {"role": "tool", "tool_call_id": made.call_id, "content": "Sunny."},
            ],
            tools=[{"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters")}}],
            max_tokens=1,
        )
    assert again.anaphora["spliced_messages"] == 1


def test_text_around_a_call_is_one_message(client: OpenAI) -> None:
    """As a chat message has it; the reply that a call is part of did not end with it."""
    function = {"name": "f", "arguments": "{}"}
    reply = {"role": "assistant", "content": "Let me see. And now?"}
    as_chat = reply | {"tool_calls": [{"id": "c", "type": "function", "function": function}]}
    user = {"role": "user", "content": "Weather?"}
    chat: Any = client.post(
        "/tokenize",
        cast_to=object,
        body={"messages": [user, as_chat, {"role": "tool", "tool_call_id": "c", "content": "Sunny."}]},
    )
    items: Any = [
        user,
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c", **function},
        {"role": "assistant", "content": " And now?"},
        {"type": "function_call_output", "call_id": "c", "output": "Sunny."},
    ]
    assert client.responses.input_tokens.count(model="fake", input=items).input_tokens == chat["count"]
