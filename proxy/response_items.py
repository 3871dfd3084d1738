"""Items: input in its many spellings into the items that are stored and listed, and items into messages. Pure.

    "text" | {role, content} | {type, ...} | {id}  ──▶  Item, with an id of its own  ──▶  Message

An item's id names the response that it belongs to, so that a reference to it needs no index: `msg_<response><number>`.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, Literal

from msgspec import Struct

from proxy.body import converted
from proxy.message_schemas import PromptCacheBreakpoint
from proxy.refusals import invalid, unsupported
from proxy.response_item_schemas import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    Item,
    MessageItem,
    OutputRefusal,
    OutputText,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)
from proxy.tool_schemas import CallId, FunctionName
from proxy.translate import TTL_S
from sessions.types import Breakpoint, Message, Part, ToolCall

_ITEM_ID: Final = re.compile(r"[a-z]{2,4}_([0-9a-f]{48})[0-9a-f]{4}")


class ItemIds:
    """The ids of one response's items, in order."""

    def __init__(self, response_id: str) -> None:
        self._response = response_id.partition("_")[2]
        self._num_given = 0

    def new(self, prefix: Literal["msg", "fc", "fco", "rs"]) -> str:
        self._num_given += 1
        return f"{prefix}_{self._response}{self._num_given:04x}"


def response_of(item_id: str) -> str | None:
    """The id of the response that an item of ours belongs to; None for an id that is not ours."""
    match = _ITEM_ID.fullmatch(item_id)
    return None if match is None else "resp_" + match[1]


# -- what clients write --


class _TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class _InputTextPart(Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class _OutputTextPart(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str


class _RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class _ImagePart(Struct, frozen=True, tag_field="type", tag="input_image"):
    """Declared to be refused by name, as the next three are."""


class _FilePart(Struct, frozen=True, tag_field="type", tag="input_file"):
    pass


class _AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    pass


class _ScreenshotPart(Struct, frozen=True, tag_field="type", tag="computer_screenshot"):
    pass


_Part = (
    _TextPart | _InputTextPart | _OutputTextPart | _RefusalPart | _ImagePart | _FilePart | _AudioPart | _ScreenshotPart
)


class _Message(Struct, frozen=True):
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[_Part]


class _FunctionCall(Struct, frozen=True):
    call_id: CallId
    name: FunctionName
    arguments: str


class _FunctionCallOutput(Struct, frozen=True):
    call_id: str
    output: str | list[_Part]


class _Reasoning(Struct, frozen=True):
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None


class ItemReference(Struct, frozen=True):
    """An item that is stored, by its id."""

    id: str


def read_input(written: str | Sequence[dict[str, Any]] | None, ids: ItemIds, param: str) -> list[Item | ItemReference]:
    """Raises InvalidRequest that names the item, or the part of it."""
    if isinstance(written, str):
        return [MessageItem(id=ids.new("msg"), role="user", content=[InputText(text=written)])]
    return [_read_item(item, ids, f"{param}[{index}]") for index, item in enumerate(written or ())]


def _read_item(written: dict[str, Any], ids: ItemIds, where: str) -> Item | ItemReference:
    kind = written.get("type")
    match ("message" if "role" in written else "item_reference") if kind is None else kind:
        case "message":
            return _message_item(converted(written, _Message, where), ids, where)
        case "function_call":
            call = converted(written, _FunctionCall, where)
            return FunctionCallItem(id=ids.new("fc"), call_id=call.call_id, name=call.name, arguments=call.arguments)
        case "function_call_output":
            returned = converted(written, _FunctionCallOutput, where)
            output = returned.output
            texts = output if isinstance(output, str) else _input_texts(output, f"{where}.output")
            return FunctionCallOutputItem(id=ids.new("fco"), call_id=returned.call_id, output=texts)
        case "reasoning":
            thought = converted(written, _Reasoning, where)
            return ReasoningItem(id=ids.new("rs"), summary=thought.summary, content=thought.content or [])
        case "item_reference":
            return converted(written, ItemReference, where)
        case _:
            raise unsupported(
                f"{where}.type", "messages, function calls and their outputs, reasoning and references are"
            )


def _message_item(message: _Message, ids: ItemIds, where: str) -> MessageItem:
    content = [_InputTextPart(message.content)] if isinstance(message.content, str) else message.content
    where = f"{where}.content"
    parts: Sequence[InputText | OutputText | OutputRefusal]
    parts = _output_parts(content, where) if message.role == "assistant" else _input_texts(content, where)
    return MessageItem(id=ids.new("msg"), role=message.role, content=list(parts))


def _input_texts(parts: Iterable[_Part], where: str) -> list[InputText]:
    return [_input_text(part, f"{where}[{index}]") for index, part in enumerate(parts)]


def _input_text(part: _Part, where: str) -> InputText:
    match part:
        case _InputTextPart(text, point) if point is not None:
            return InputText(text=text, prompt_cache_breakpoint=point)
        case _InputTextPart(text) | _TextPart(text) | _OutputTextPart(text) | _RefusalPart(text):
            return InputText(text=text)
        case _:
            raise unsupported(where, "only text parts are")


def _output_parts(parts: Iterable[_Part], where: str) -> list[OutputText | OutputRefusal]:
    read: list[OutputText | OutputRefusal] = []
    for index, part in enumerate(parts):
        if isinstance(part, _RefusalPart):
            read.append(OutputRefusal(refusal=part.refusal))
        else:
            read.append(OutputText(text=_input_text(part, f"{where}[{index}]").text))
    return read


# -- what the model is shown --


def messages_of(items: Iterable[Item]) -> list[Message]:
    """What belongs to one reply, its reasoning, text and calls, is one message of the assistant's.

    Text after a call belongs to it too: until its output comes, nobody else could have said it.
    """
    messages: list[Message] = []
    for item in items:
        last = messages[-1] if messages and messages[-1].role == "assistant" else None
        match item:
            case MessageItem(role="assistant"):
                begun = last if last is not None and (last.tool_calls or not last.content) else None
                said = begun or Message("assistant")
                text = said.content + "".join(part_text(part) for part in item.content)
                _continue(messages, begun, said._replace(content=text))
            case FunctionCallItem():
                said = last or Message("assistant")
                call = ToolCall(item.call_id, item.name, item.arguments)
                _continue(messages, last, said._replace(tool_calls=(*said.tool_calls, call)))
            case ReasoningItem():
                text = "".join(part.text for part in (item.content or item.summary))
                messages.append(Message("assistant", reasoning=text))
            case MessageItem():
                text, parts = _joined(item.content)
                messages.append(Message(item.role, text, parts=parts))
            case FunctionCallOutputItem():
                text, parts = (item.output, ()) if isinstance(item.output, str) else _joined(item.output)
                messages.append(Message("tool", text, item.call_id, parts))
    return messages


def part_text(part: InputText | OutputText | OutputRefusal) -> str:
    return part.refusal if isinstance(part, OutputRefusal) else part.text


def _continue(messages: list[Message], begun: Message | None, message: Message) -> None:
    if begun is not None:
        messages.pop()
    messages.append(message)


def _joined(content: Sequence[InputText | OutputText | OutputRefusal]) -> tuple[str, tuple[Part, ...]]:
    """Parts are joined as they stand; where each of them is, if the client marked one."""
    texts = [part_text(part) for part in content]
    points = [_breakpoint(part) for part in content]
    if not any(points):
        return "".join(texts), ()
    offsets = pairwise(accumulate(map(len, texts), initial=0))
    return "".join(texts), tuple(Part(start, end, point) for (start, end), point in zip(offsets, points, strict=True))


def _breakpoint(part: InputText | OutputText | OutputRefusal) -> Breakpoint | None:
    point = part.prompt_cache_breakpoint if isinstance(part, InputText) else None
    return Breakpoint(TTL_S[point.ttl]) if isinstance(point, PromptCacheBreakpoint) else None


def check_call_ids(before: Sequence[Item], given: Sequence[Item], param: str) -> None:
    """Raises InvalidRequest for an output of a call that nobody made, as OpenAI does.

    before: what is stored; there a call may have been deleted since its output came. param: where `given` stands.
    """
    made: set[str] = set()
    for index, item in enumerate([*before, *given], -len(before)):
        if isinstance(item, FunctionCallItem):
            made.add(item.call_id)
        elif isinstance(item, FunctionCallOutputItem) and item.call_id not in made:
            where = f"{param}[{index}].call_id" if index >= 0 else "conversation"
            raise invalid(where, f"no tool call found for function call output with call_id '{item.call_id[:64]}'")
