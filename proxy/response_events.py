"""Deltas of one reply into the events and the output items of a response. Pure; whole answers and streams agree.

    created ─ in_progress ─┬─ reasoning:  item.added  part.added  reasoning_text.delta*  .done  part.done  item.done
                           ├─ message:    item.added  part.added  output_text.delta*     .done  part.done  item.done
                           ├─ call:       item.added  function_call_arguments.delta*     .done             item.done
                           └─ completed │ incomplete │ failed

One item is open at a time; what comes next closes it. `sequence_number` counts every event, and the id of an item is
the same in all of its events and in the answer.
"""

from itertools import count
from typing import Any

from proxy.response_event_schemas import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from proxy.response_item_schemas import (
    FunctionCallItem,
    Logprob,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    TopLogprob,
)
from proxy.response_items import ItemIds
from proxy.schemas import ENCODER
from sessions.reports import Delta, TokenLogprob, ToolCallPiece


class EventWriter:
    """Numbers events and frames them."""

    def __init__(self) -> None:
        self._numbers = count()

    def frame(self, event: Event) -> bytes:
        event.sequence_number = next(self._numbers)
        name = str(event.__struct_config__.tag).encode()
        return b"event: " + name + b"\ndata: " + ENCODER.encode(event) + b"\n\n"


class _OpenMessage:
    """The message that is being said."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self.place: dict[str, Any] = {"item_id": item_id, "output_index": output_index}
        self._texts: list[str] = []
        self._logprobs: list[Logprob] = []

    def begin(self) -> list[Event]:
        return [
            _added(self.place, self._item([], "in_progress")),
            PartAdded(part=OutputText(text=""), **self.place),
        ]

    def say(self, text: str, logprobs: list[Logprob]) -> list[Event]:
        self._texts.append(text)
        self._logprobs += logprobs
        return [TextDelta(delta=text, logprobs=logprobs, **self.place)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        part = OutputText(text="".join(self._texts), logprobs=self._logprobs)
        item = self._item([part], status)
        return item, [
            TextDone(text=part.text, logprobs=part.logprobs, **self.place),
            PartDone(part=part, **self.place),
            _done(self.place, item),
        ]

    def _item(self, content: list[Any], status: Status) -> MessageItem:
        return MessageItem(id=self.place["item_id"], role="assistant", content=content, status=status)


class _OpenReasoning:
    """The reasoning that is going on."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self.place: dict[str, Any] = {"item_id": item_id, "output_index": output_index}
        self._texts: list[str] = []

    def begin(self) -> list[Event]:
        return [
            _added(self.place, ReasoningItem(id=self.place["item_id"], status="in_progress")),
            PartAdded(part=ReasoningText(text=""), **self.place),
        ]

    def say(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [ReasoningDelta(delta=text, **self.place)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        part = ReasoningText(text="".join(self._texts))
        item = ReasoningItem(id=self.place["item_id"], content=[part], status=status)
        return item, [
            ReasoningDone(text=part.text, **self.place),
            PartDone(part=part, **self.place),
            _done(self.place, item),
        ]


class _OpenCall:
    """The call that is being written."""

    def __init__(self, item_id: str, output_index: int, piece: ToolCallPiece) -> None:
        self.place: dict[str, Any] = {"item_id": item_id, "output_index": output_index}
        self.index = piece.index
        self._call_id = piece.id or ""
        self._name = piece.name or ""
        self._arguments: list[str] = []

    def begin(self) -> list[Event]:
        return [_added(self.place, self._item("in_progress"))]

    def say(self, arguments: str) -> list[Event]:
        self._arguments.append(arguments)
        return [ArgumentsDelta(delta=arguments, **self.place)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        return item, [
            ArgumentsDone(name=item.name, arguments=item.arguments, **self.place),
            _done(self.place, item),
        ]

    def _item(self, status: Status) -> FunctionCallItem:
        return FunctionCallItem(
            id=self.place["item_id"],
            call_id=self._call_id,
            name=self._name,
            arguments="".join(self._arguments),
            status=status,
        )


class OutputBuilder:
    """Feed it a reply's deltas, then `end` it. `output` has the items that are closed."""

    def __init__(self, ids: ItemIds) -> None:
        self._ids = ids
        self._open: _OpenMessage | _OpenReasoning | _OpenCall | None = None
        self._events: list[Event] = []
        self._logprobs: list[Logprob] = []
        """Of tokens whose text is held back; those of a call's or of thoughts have no place in a message."""
        self.output: list[OutputItem] = []
        self.is_cut_off = False

    def feed(self, delta: Delta) -> list[Event]:
        """The events that this piece makes."""
        if delta.reasoning:
            self._events += self._reasoning().say(delta.reasoning)
        self._logprobs += [_logprob(entry) for entry in delta.logprobs]
        is_elsewhere = delta.reasoning or delta.tool_calls or isinstance(self._open, (_OpenReasoning, _OpenCall))
        if delta.text or (self._logprobs and isinstance(self._open, _OpenMessage) and not is_elsewhere):
            self._events += self._message().say(delta.text, self._logprobs)
            self._logprobs = []
        elif is_elsewhere:
            self._logprobs = []
        for piece in delta.tool_calls:
            call = self._call(piece)
            if piece.arguments:
                self._events += call.say(piece.arguments)
        if delta.finish_reason is not None:
            self._finish(is_cut_off=delta.finish_reason == "length")
        return self._taken()

    def abandon(self) -> list[Event]:
        """The reply ended with an error: what is open stays incomplete."""
        self._close("incomplete")
        return self._taken()

    def _finish(self, *, is_cut_off: bool) -> None:
        """A reply that says nothing is an empty message."""
        self.is_cut_off = is_cut_off
        if self._open is None and not self.output:
            self._message()
        self._close("incomplete" if is_cut_off else "completed")

    def _message(self) -> _OpenMessage:
        if isinstance(self._open, _OpenMessage):
            return self._open
        self._close("completed")
        opened = self._open = _OpenMessage(self._ids.new("msg"), len(self.output))
        self._events += opened.begin()
        return opened

    def _reasoning(self) -> _OpenReasoning:
        if isinstance(self._open, _OpenReasoning):
            return self._open
        self._close("completed")
        opened = self._open = _OpenReasoning(self._ids.new("rs"), len(self.output))
        self._events += opened.begin()
        return opened

    def _call(self, piece: ToolCallPiece) -> _OpenCall:
        if isinstance(self._open, _OpenCall) and self._open.index == piece.index:
            return self._open
        self._close("completed")
        opened = self._open = _OpenCall(self._ids.new("fc"), len(self.output), piece)
        self._events += opened.begin()
        return opened

    def _close(self, status: Status) -> None:
        if self._open is not None:
            item, events = self._open.end(status)
            self.output.append(item)
            self._events += events
            self._open = None

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def _added(place: dict[str, Any], item: OutputItem) -> Event:
    return ItemAdded(output_index=place["output_index"], item=item)


def _done(place: dict[str, Any], item: OutputItem) -> Event:
    return ItemDone(output_index=place["output_index"], item=item)


def _logprob(entry: TokenLogprob) -> Logprob:
    return Logprob(
        token=entry.text,
        bytes=list(entry.bytes or b""),
        logprob=entry.logprob,
        top_logprobs=[
            TopLogprob(token=other.text, bytes=list(other.bytes or b""), logprob=other.logprob) for other in entry.top
        ],
    )
