"""Deltas into events and items: order, ids, places, and that the stream says what the answer has."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from proxy.response_event_schemas import Completed, Created
from proxy.response_events import EventWriter, OutputBuilder
from proxy.response_item_schemas import FunctionCallItem, MessageItem, ReasoningItem
from proxy.response_items import ItemIds, response_of
from proxy.response_schemas import ResponseBody
from sessions.reports import Delta, TokenLogprob, ToolCallPiece

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE_ID = "resp_" + "0f" * 24


def played(*deltas: Delta) -> tuple[OutputBuilder, list[dict[str, Any]]]:
    """What is built, and the events as a client decodes them."""
    builder, writer = OutputBuilder(ItemIds(RESPONSE_ID)), EventWriter()
    frames = [writer.frame(event) for delta in deltas for event in builder.feed(delta)]
    return builder, [json.loads(frame.split(b"data: ", 1)[1]) for frame in frames]


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


CALL = [
    Delta(0, "", tool_calls=(ToolCallPiece(0, id="call_1", name="add"),)),
    Delta(0, "", tool_calls=(ToolCallPiece(0, '{"a":'), ToolCallPiece(0, "1}"))),
    Delta(0, "", tool_calls=(ToolCallPiece(1, "{}", id="call_2", name="sub"),)),
    Delta(0, "", "tool_calls"),
]


def test_reasoning_text_and_calls_are_items_in_their_order() -> None:
    builder, events = played(
        Delta(0, "", reasoning="Let me "), Delta(0, "", reasoning="add."), Delta(0, "I add."), *CALL
    )
    assert kinds(events) == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    reasoning, message, first, second = builder.output
    assert isinstance(reasoning, ReasoningItem) and reasoning.content[0].text == "Let me add."
    assert isinstance(message, MessageItem) and message.status == "completed"
    assert isinstance(first, FunctionCallItem) and isinstance(second, FunctionCallItem)
    assert (first.call_id, first.name, first.arguments) == ("call_1", "add", '{"a":1}')
    assert (second.call_id, second.name, second.arguments) == ("call_2", "sub", "{}")
    assert not builder.is_cut_off


def test_logprobs_open_no_message_where_a_call_or_thoughts_are() -> None:
    """Those of the marker before, of what is inside, and of the marker after have no place; those of held text do."""
    score = (TokenLogprob("x", b"x", -1.0),)
    builder, events = played(
        Delta(0, "", logprobs=score), Delta(0, "", reasoning="hm", logprobs=score), Delta(0, "", logprobs=score),
        Delta(0, "", logprobs=score), Delta(0, "ab", logprobs=score),
        Delta(0, "", tool_calls=(ToolCallPiece(0, "{", id="call_1", name="add"),), logprobs=score),
        Delta(0, "", logprobs=score), Delta(0, "", tool_calls=(ToolCallPiece(0, "}"),), logprobs=score),
        Delta(0, "", "tool_calls", logprobs=score),
    )  # fmt: skip
    reasoning, message, call = builder.output
    assert isinstance(reasoning, ReasoningItem) and isinstance(message, MessageItem)
    assert isinstance(call, FunctionCallItem) and (call.call_id, call.name, call.arguments) == ("call_1", "add", "{}")
    assert len(message.content[0].logprobs) == 1  # type: ignore[union-attr]
    assert kinds(events).count("output_item.added") == 3


def test_the_logprobs_of_text_that_is_held_back_come_with_it() -> None:
    score = (TokenLogprob("x", b"x", -1.0),)
    builder, events = played(Delta(0, "", logprobs=score), Delta(0, "xx", "stop", logprobs=score))
    [message] = builder.output
    assert isinstance(message, MessageItem) and len(message.content[0].logprobs) == 2  # type: ignore[union-attr]
    assert kinds(events).count("output_text.delta") == 1


def test_a_reply_that_says_nothing_is_an_empty_message() -> None:
    builder, events = played(Delta(0, "", "stop"))
    [message] = builder.output
    assert isinstance(message, MessageItem) and message.content[0].text == ""  # type: ignore[union-attr]
    assert kinds(events)[0] == "output_item.added" and kinds(events)[-1] == "output_item.done"


def test_what_is_cut_off_is_incomplete() -> None:
    builder, _ = played(Delta(0, "", reasoning="hm"), Delta(0, "begun"), Delta(0, "", "length"))
    assert builder.is_cut_off
    assert [item.status for item in builder.output] == ["completed", "incomplete"]


def test_what_is_abandoned_keeps_what_was_said() -> None:
    builder, _ = played(Delta(0, "begun"))
    assert builder.output == []
    events = builder.abandon()
    [message] = builder.output
    assert message.status == "incomplete" and type(events[-1]).__name__ == "ItemDone"
    assert OutputBuilder(ItemIds(RESPONSE_ID)).abandon() == []


PIECES = st.one_of(
    st.builds(lambda text: Delta(0, text), st.text(max_size=5)),
    st.builds(lambda text: Delta(0, "", reasoning=text), st.text(max_size=5)),
    st.just(None),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(PIECES, max_size=12), st.sampled_from(["stop", "length"]))
def test_openais_own_helper_accumulates_what_the_answer_has(pieces: list[Delta | None], reason: Any) -> None:
    """None is the next call, with its arguments in two pieces."""
    deltas: list[Delta] = []
    for index, piece in enumerate(pieces):
        call = (ToolCallPiece(index, "{", id=f"call_{index}", name="f"), ToolCallPiece(index, "}"))
        deltas.append(piece if piece is not None else Delta(0, "", tool_calls=call))
    builder, events = played(*deltas, Delta(0, "", reason))
    body = ResponseBody(id=RESPONSE_ID, created_at=0, model="m")
    writer = EventWriter()
    ending = ResponseBody(id=RESPONSE_ID, created_at=0, model="m", status="completed", output=builder.output)
    framed = [writer.frame(event) for event in (Created(response=body), Completed(response=ending))]
    first, last = (json.loads(frame.split(b"data: ", 1)[1]) for frame in framed)
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in (first, *events, last):
        state.handle_event(EVENT.validate_python(event))
    final = state._completed_response
    assert [item.type for item in final.output] == [
        {"MessageItem": "message", "FunctionCallItem": "function_call", "ReasoningItem": "reasoning"}[type(i).__name__]
        for i in builder.output
    ]
    said = "".join(piece.text for piece in pieces if piece is not None)
    assert final.output_text == said


def test_an_items_id_names_its_response() -> None:
    ids = ItemIds(RESPONSE_ID)
    given = [ids.new("msg"), ids.new("fc"), ids.new("rs"), ids.new("fco")]
    assert {response_of(item_id) for item_id in given} == {RESPONSE_ID} and len(set(given)) == 4
    assert response_of("msg_1") is None and response_of(RESPONSE_ID) is None
