"""The events of a streamed response; `response_events.py` says in which order they come."""

from msgspec import Struct

from proxy.response_item_schemas import Logprob, OutputItem, OutputText, ReasoningText
from proxy.response_schemas import ResponseBody


class Event(Struct, kw_only=True, tag_field="type"):
    """sequence_number: rises by one with every event of a stream."""

    sequence_number: int = -1


class LifecycleEvent(Event, kw_only=True):
    """response: as it is now."""

    response: ResponseBody


class Created(LifecycleEvent, kw_only=True, tag="response.created"):
    """The response is begun."""


class InProgress(LifecycleEvent, kw_only=True, tag="response.in_progress"):
    """It is being worked on."""


class Completed(LifecycleEvent, kw_only=True, tag="response.completed"):
    """The end: it is whole."""


class Incomplete(LifecycleEvent, kw_only=True, tag="response.incomplete"):
    """The end: it was cut off."""


class Failed(LifecycleEvent, kw_only=True, tag="response.failed"):
    """The end: something went wrong."""


class ItemEvent(Event, kw_only=True):
    """output_index: of the item in `output`."""

    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, kw_only=True, tag="response.output_item.added"):
    """An item begins.

    item: as it is now.
    """


class ItemDone(ItemEvent, kw_only=True, tag="response.output_item.done"):
    """An item is whole.

    item: as it is in the answer.
    """


class EventInItem(Event, kw_only=True):
    """item_id: of the item. output_index: of the item in `output`."""

    item_id: str
    output_index: int


class EventInPart(EventInItem, kw_only=True):
    """content_index: of the part in the item."""

    content_index: int = 0


class PartAdded(EventInPart, kw_only=True, tag="response.content_part.added"):
    """A part of an item begins.

    part: still empty.
    """

    part: OutputText | ReasoningText


class PartDone(EventInPart, kw_only=True, tag="response.content_part.done"):
    """A part of an item is whole.

    part: as it is in the answer.
    """

    part: OutputText | ReasoningText


class TextDelta(EventInPart, kw_only=True, tag="response.output_text.delta"):
    """A piece of the answer's text.

    delta: the piece. logprobs: of its tokens, if asked for.
    """

    delta: str
    logprobs: list[Logprob] = []


class TextDone(EventInPart, kw_only=True, tag="response.output_text.done"):
    """All of the text.

    text: all pieces together. logprobs: of all tokens, if asked for.
    """

    text: str
    logprobs: list[Logprob] = []


class ReasoningDelta(EventInPart, kw_only=True, tag="response.reasoning_text.delta"):
    """A piece of the reasoning.

    delta: the piece.
    """

    delta: str


class ReasoningDone(EventInPart, kw_only=True, tag="response.reasoning_text.done"):
    """All of the reasoning.

    text: all pieces together.
    """

    text: str


class ArgumentsDelta(EventInItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """A piece of a call's arguments.

    delta: the piece.
    """

    delta: str


class ArgumentsDone(EventInItem, kw_only=True, tag="response.function_call_arguments.done"):
    """All of a call's arguments.

    name: of the function. arguments: all pieces together.
    """

    name: str
    arguments: str


StreamEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | ReasoningDelta
    | ReasoningDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)
