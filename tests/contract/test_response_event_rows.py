"""The order of a response's events, in one reading that every streamed test can use."""

from collections.abc import Sequence
from typing import Any

from openai import OpenAI

ENDS = ("response.completed", "response.incomplete", "response.failed")


def check_events(events: Sequence[Any]) -> Any:
    """The final response. Asserts what the table says of the stream: order, numbers, places, and that pieces add up."""
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in ENDS and not set(ENDS) & set(kinds[:-1])
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}
    for index, item in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        assert (own[0].type, own[-1].type) == ("response.output_item.added", "response.output_item.done")
        assert own[-1].item == item
        assert {event.item_id for event in own[1:-1]} <= {item.id}
        assert {event.content_index for event in own if hasattr(event, "content_index")} <= {0}
        deltas = "".join(event.delta for event in own if event.type.endswith(".delta"))
        assert deltas == (item.arguments if item.type == "function_call" else item.content[0].text)
    return final


def test_events_of_text_and_of_a_call_come_in_order(client: OpenAI) -> None:
    tool: Any = {"type": "function", "name": "f", "strict": False}
    asked: dict[str, Any] = {"model": "fake", "input": "hello", "max_output_tokens": 100, "temperature": 0}
    text = check_events(list(client.responses.create(**asked, stream=True)))
    call = check_events(list(client.responses.create(**asked, stream=True, tools=[tool], tool_choice="required")))
    assert (text.output[0].type, call.output[0].type) == ("message", "function_call")
