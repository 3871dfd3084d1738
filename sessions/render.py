"""Canonical chat rendering, version `render/1`: two requests that mean the same give the same text. Pure.

Order: tools by function name; the leading system block (every system or developer message before the first
assistant message, in its own order, merged into one; with `stable_first`, marked parts before unmarked ones);
then the other messages where they stand. Appending turns never changes what was rendered before them, as far
as the model's own template allows.
`docs/rendering.md` has the reasons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sessions.control_tokens import NoStandInError, StandIns
from sessions.errors import InvalidRequest
from sessions.prompt import ChatTemplate, ContentSpan, Move, Prompt, Segment, TemplateError
from sessions.types import Message, Tool

VERSION: Final = "render/1"
SYSTEM_ROLES: Final = ("system", "developer")
_MERGED_BY: Final = "\n\n"


@dataclass(frozen=True, slots=True)
class _Piece:
    """What moves as a whole inside the leading system block: a message, or one part of it. `path`: its place before."""

    message: int
    text: str
    path: str
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message in canonical order. `source` is its index in the request (the first one's, if merged)."""

    source: int
    role: str
    content: str
    tool_call_id: str | None = None

    def holding(self, content: str) -> dict[str, Any]:
        """What the template gets, with other content."""
        if self.tool_call_id is None:
            return {"role": self.role, "content": content}
        return {"role": self.role, "content": content, "tool_call_id": self.tool_call_id}


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    template: ChatTemplate,
    *,
    add_generation_prompt: bool = True,
    stable_first: bool = False,
) -> Prompt:
    """Render a conversation; with `add_generation_prompt` the text ends where the assistant's reply begins.

    stable_first: inside the leading system block, parts marked with `prompt_cache_breakpoint` go first.
    Raises InvalidRequest when the template refuses the conversation, naming the message where one is to
    blame.
    """
    order, num_leading = _canonical_order(messages)
    tool_order = sorted(range(len(tools)), key=lambda index: tools[index].name)
    if tools and not template.takes_tools:
        raise InvalidRequest("This model's chat template has no place for tools.", param="tools")
    schemas = [_sorted_keys(_schema(tools[index])) for index in tool_order]
    pieces = [piece for index in order[:num_leading] for piece in _pieces(index, messages[index])]
    piece_order = sorted(range(len(pieces)), key=lambda at: stable_first and not pieces[at].is_marked)
    turns = [_turn(index, messages[index]) for index in order]
    if num_leading:
        turns[:num_leading] = [_Turn(order[0], "system", _joined([pieces[at] for at in piece_order]))]
    turns, neutral_schemas, stand_ins = _neutralise(turns, schemas, template)
    try:
        text = template.apply([turn.holding(turn.content) for turn in turns], neutral_schemas, add_generation_prompt)
    except TemplateError as refusal:
        raise _refused(refusal, template, turns, neutral_schemas) from refusal
    text = stand_ins.unescape(text)
    skeleton = _skeleton(template, turns, neutral_schemas, add_generation_prompt, stand_ins.spare)
    return Prompt(
        text=stand_ins.restore(text),
        segments=_segments(text, template, stand_ins),
        contents=_locate_contents(text, turns, skeleton),
        moves=(
            *_moves("messages", order[:num_leading]),
            *_moves("messages[0].content", piece_order, [piece.path for piece in pieces]),
            *_moves("tools", tool_order),
        ),
    )


def _canonical_order(messages: Sequence[Message]) -> tuple[list[int], int]:
    """Indices of `messages` in canonical order, and how many of them are the leading system block."""
    roles = [message.role for message in messages]
    first_reply = roles.index("assistant") if "assistant" in roles else len(roles)
    leading = [index for index in range(first_reply) if roles[index] in SYSTEM_ROLES]
    others = [index for index, role in enumerate(roles) if index >= first_reply or role not in SYSTEM_ROLES]
    return leading + others, len(leading)


def _pieces(index: int, message: Message) -> list[_Piece]:
    """Empty ones vanish: merging would leave a gap for them."""
    if not message.parts:
        return [_Piece(index, message.content, f"messages[{index}]")] if message.content else []
    return [
        _Piece(index, message.content[part.start : part.end], f"messages[{index}].content[{at}]", part.is_marked)
        for at, part in enumerate(message.parts)
        if part.start < part.end
    ]


def _joined(pieces: Sequence[_Piece]) -> str:
    """One system message for the whole leading block: many templates take only one, and only at the front.

    Parts of one message follow each other as they stand, messages after a blank line.
    """
    text = ""
    for before, piece in zip([None, *pieces], pieces, strict=False):
        text += (_MERGED_BY if before and before.message != piece.message else "") + piece.text
    return text


def _turn(source: int, message: Message) -> _Turn:
    role = "system" if message.role in SYSTEM_ROLES else message.role
    return _Turn(source, role, message.content, message.tool_call_id)


def _neutralise(
    turns: Sequence[_Turn], schemas: list[dict[str, Any]], template: ChatTemplate
) -> tuple[list[_Turn], list[dict[str, Any]] | None, StandIns]:
    """Every string that a client wrote, made safe for the template, which expects None for no tools."""
    contents = [turn.content for turn in turns]
    call_ids = [turn.tool_call_id for turn in turns]
    try:
        (contents, call_ids, schemas), stand_ins = template.control_tokens.neutralise([contents, call_ids, schemas])
    except NoStandInError:
        raise InvalidRequest("The messages use every private-use code point.", param="messages") from None
    neutral = [
        _Turn(turn.source, turn.role, content, call_id)
        for turn, content, call_id in zip(turns, contents, call_ids, strict=True)
    ]
    return neutral, schemas or None, stand_ins


def _schema(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


def _sorted_keys(value: Any) -> Any:
    """Key order means nothing, list order does. Separators are the template's, as the model was trained."""
    if isinstance(value, dict):
        return {key: _sorted_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted_keys(part) for part in value]
    return value


def _moves(path: str, order: Sequence[int], sources: Sequence[str] = ()) -> list[Move]:
    """Whoever does not keep its place. `sources` say where each stood, if that is not `path[i]`."""
    return [
        Move(sources[source] if sources else f"{path}[{source}]", f"{path}[{target}]")
        for target, source in enumerate(order)
        if source != target
    ]


def _refused(
    refusal: TemplateError,
    template: ChatTemplate,
    turns: Sequence[_Turn],
    schemas: list[dict[str, Any]] | None,
) -> InvalidRequest:
    """Blame a system message if the template accepts the rest: without the later ones, then without any."""
    for first_allowed in (1, 0):
        blamed = next((turn for turn in turns[first_allowed:] if turn.role == "system"), None)
        kept = [turn for at, turn in enumerate(turns) if at < first_allowed or turn.role != "system"]
        if kept and blamed is not None and _accepts(template, kept, schemas):
            return InvalidRequest(
                f"This model's chat template does not take a system message here: {refusal}",
                param=f"messages[{blamed.source}].role",
            )
    return InvalidRequest(f"This model's chat template refuses the conversation: {refusal}", param="messages")


def _accepts(template: ChatTemplate, turns: Sequence[_Turn], schemas: list[dict[str, Any]] | None) -> bool:
    try:
        template.apply([turn.holding(turn.content) for turn in turns], schemas, True)
    except TemplateError:
        return False
    return True


def _segments(text: str, template: ChatTemplate, stand_ins: StandIns) -> tuple[Segment, ...]:
    segments = []
    end = 0
    for match in template.control_tokens.find(text):
        if end < match.start:
            segments.append(Segment(end, stand_ins.restore(text[end : match.start])))
        segments.append(Segment(match.start, text[match.start : match.end], match.token.id))
        end = match.end
    if end < len(text):
        segments.append(Segment(end, stand_ins.restore(text[end:])))
    return tuple(segments)


def _skeleton(
    template: ChatTemplate,
    turns: Sequence[_Turn],
    schemas: list[dict[str, Any]] | None,
    add_generation_prompt: bool,
    marker: str,
) -> list[str]:
    """What the template writes around k contents, as k + 1 pieces; none if that cannot be told."""
    marked = [turn.holding(marker if turn.content.strip() else turn.content) for turn in turns]
    try:
        return template.apply(marked, schemas, add_generation_prompt).split(marker)
    except TemplateError:
        return []


def _locate_contents(text: str, turns: Sequence[_Turn], skeleton: Sequence[str]) -> tuple[ContentSpan, ...]:
    """Lay contents into the skeleton and check that this is `text`, so a located content is never a guess."""
    filled = [turn for turn in turns if turn.content.strip()]
    if len(skeleton) != len(filled) + 1 or not text.startswith(skeleton[0]):
        return ()
    spans = []
    at = len(skeleton[0])
    for turn, after in zip(filled, skeleton[1:], strict=True):
        for content in (turn.content, turn.content.strip(), turn.content.rstrip(), turn.content.lstrip()):
            end = at + len(content)
            if text.startswith(content, at) and text.startswith(after, end):
                break
        else:
            return ()
        spans.append(ContentSpan(turn.source, at, end))
        at = end + len(after)
    return tuple(spans) if at == len(text) else ()
