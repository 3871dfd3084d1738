"""Tools on the wire: what is taken, what is refused by name, and calls on their way back."""

from typing import Any

import msgspec
import pytest

from proxy.tools import call_pieces, whole_calls
from sessions.reports import ToolCallPiece
from sessions.types import Message, Tool, ToolCall, ToolChoice
from tests.unit.proxy.test_translate import USER, refusal, translate


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TWO = [tool("f"), tool("g", description="does", parameters={"type": "object"}, strict=True)]


def test_definitions() -> None:
    assert translate(tools=TWO).tools == (Tool("f"), Tool("g", "does", {"type": "object"}, strict=True))
    assert translate(tools=[tool("f", strict=None, description=None, parameters=None)]).tools == (Tool("f"),)


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": "none"}, ToolChoice("none")),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ToolChoice("required", None, is_parallel=False)),
        ({"tool_choice": named("g")}, ToolChoice("required", ("g",), is_parallel=False)),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [named("g"), named("f")]},
                }
            },
            ToolChoice("auto", ("f", "g")),
        ),
    ],
)
def test_choices(fields: dict[str, Any], choice: ToolChoice) -> None:
    assert translate(tools=TWO, **fields).tool_choice == choice


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("f")}, "tool_choice.function.name"),
        ({"tools": TWO, "tool_choice": named("h")}, "tool_choice.function.name"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, "invalid_value")


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool("")]},
        {"tools": [tool("a b")]},
        {"tools": [tool("f\n")]},
        {"tools": [tool("x" * 65)]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [tool(f"f{at}") for at in range(129)]},
        {"tools": [tool("f", parameters=[])]},
        {"tool_choice": "any"},
        {"chat_template_kwargs": {"a b": 1}},
        {"chat_template_kwargs": {"a": [1]}},
        {"chat_template_kwargs": {"a": 1.5}},
        {"chat_template_kwargs": {"a": "x" * 257}},
    ],
)
def test_what_has_another_shape_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        translate(**fields)


def test_calls_that_come_back() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for content in ({"content": None}, {"content": ""}, {}):
        message = {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm", **content}
        assert translate(messages=[USER, message]).messages[1] == Message(
            "assistant", tool_calls=(ToolCall("call_1", "f", "{}"),), reasoning="hm"
        )


def test_template_options_come_sorted_and_the_clients_own_win() -> None:
    asked = translate(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False, "depth": 2})
    assert asked.template_options == (("depth", 2), ("enable_thinking", False), ("reasoning_effort", "low"))
    both = translate(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "none"})
    assert both.template_options == (("reasoning_effort", "none"),)


def test_pieces_of_calls_make_whole_ones_and_say_who_they_are_once() -> None:
    pieces = [
        ToolCallPiece(0, '{"a"', "call_1", "f"),
        ToolCallPiece(0, ": 1}"),
        ToolCallPiece(1, "{}", "call_2", "g"),
    ]
    assert [(c.id, c.function.name, c.function.arguments) for c in whole_calls(pieces)] == [
        ("call_1", "f", '{"a": 1}'),
        ("call_2", "g", "{}"),
    ]


def test_a_delta_has_one_entry_for_each_call() -> None:
    whole = ToolCallPiece(0, '{"a"', "call_1", "f"), ToolCallPiece(0, ": 1}"), ToolCallPiece(1, "", "call_2", "g")
    assert msgspec.to_builtins(call_pieces(whole)) == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    assert msgspec.to_builtins(call_pieces([ToolCallPiece(1, "{"), ToolCallPiece(1, "}")])) == [
        {"index": 1, "function": {"arguments": "{}"}}
    ]


@pytest.mark.parametrize("parameters", [{"type": "array"}, {"type": ["object", "null"]}])
def test_arguments_that_are_no_object_are_refused(parameters: Any) -> None:
    refused = refusal(tools=[tool("f"), tool("g", parameters=parameters)])
    assert refused.param == "tools[1].function.parameters"
