"""Items into messages: what belongs to one reply is one message, and parts keep their breakpoints."""

from typing import Any

from proxy.response_items import ItemIds, messages_of, read_input
from proxy.response_pages import page_of
from sessions.types import Breakpoint, Message, Part, ToolCall


def messages(*written: dict[str, Any]) -> list[Message]:
    return messages_of(read_input(written, ItemIds("resp_" + "0" * 48), "input"))  # type: ignore[arg-type]


def call(number: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{number}", "name": "f", "arguments": "{}"}


def output(number: int) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": str(number)}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


CALLS = tuple(ToolCall(f"call_{number}", "f", "{}") for number in range(3))


def test_a_replys_reasoning_text_and_calls_are_one_message() -> None:
    assert messages(thought("hm"), said("I call."), call(0), call(1), output(0), output(1), said("Done.")) == [
        Message("assistant", "I call.", tool_calls=CALLS[:2], reasoning="hm"),
        Message("tool", "0", "call_0"),
        Message("tool", "1", "call_1"),
        Message("assistant", "Done."),
    ]


def test_calls_in_turn_are_messages_of_their_own() -> None:
    assert messages(call(0), output(0), call(1), output(1)) == [
        Message("assistant", tool_calls=CALLS[:1]),
        Message("tool", "0", "call_0"),
        Message("assistant", tool_calls=CALLS[1:2]),
        Message("tool", "1", "call_1"),
    ]


def test_text_after_a_call_belongs_to_its_reply() -> None:
    whole = Message("assistant", "I call. Wait.", tool_calls=CALLS[:2], reasoning="hm")
    assert messages(thought("hm"), said("I call."), call(0), said(" Wait."), call(1), output(0)) == [
        whole,
        Message("tool", "0", "call_0"),
    ]


def test_two_replies_in_a_row_stay_two() -> None:
    assert messages(said("One."), said("Two."), thought("hm"), said("Three.")) == [
        Message("assistant", "One."),
        Message("assistant", "Two."),
        Message("assistant", "Three.", reasoning="hm"),
    ]


def test_a_summary_stands_for_reasoning_that_is_not_there() -> None:
    summary = {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "in short"}]}
    assert messages(summary, said("Yes.")) == [Message("assistant", "Yes.", reasoning="in short")]


def test_parts_are_joined_and_a_breakpoint_has_its_place() -> None:
    marked = {"type": "input_text", "text": "abc", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}
    plain = {"type": "input_text", "text": "de"}
    parts = (Part(0, 3, Breakpoint(1800.0)), Part(3, 5, None))
    assert messages({"role": "user", "content": [marked, plain]}) == [Message("user", "abcde", parts=parts)]
    assert messages({"role": "developer", "content": [plain, plain]}) == [Message("developer", "dede")]
    tool = {"type": "function_call_output", "call_id": "c", "output": [marked]}
    assert messages(tool) == [Message("tool", "abc", "c", parts=parts[:1])]


def test_pages_follow_each_other_in_either_order() -> None:
    items: Any = read_input([{"role": "user", "content": str(n)} for n in range(5)], ItemIds("resp_x"), "input")
    for order, expected in (("asc", "01234"), ("desc", "43210")):
        texts, after, has_more = "", None, True
        while has_more:
            page = page_of(items, after=after, limit=2, order=order)  # type: ignore[arg-type]
            texts += "".join(item.content[0].text for item in page.data)  # type: ignore[union-attr]
            after, has_more = page.last_id, page.has_more
        assert texts == expected
    empty = page_of([], after=None, limit=2, order="asc")
    assert (empty.data, empty.first_id, empty.last_id, empty.has_more) == ([], "", "", False)
