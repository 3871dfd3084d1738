"""Conversation: a request's messages and tools in canonical order, version `render/1`, before any template. Pure.

Order: tools by function name; the leading system block (every system or developer message before the first
assistant message, in its own order, merged into one; with `stable_first`, marked parts before unmarked ones);
then the other messages where they stand. `docs/rendering.md` has the reasons.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, NamedTuple, NewType

from sessions.reports import Move
from sessions.types import Breakpoint, Message, Tool

VERSION: Final = "render/1"
SYSTEM_ROLES: Final = ("system", "developer")
_MERGED_BY: Final = "\n\n"
_TURN_PERSON: Final = b"anaphora/turn/1"
_EXACT_IN_DOUBLES: Final = 2**53

TurnKey = NewType("TurnKey", bytes)
"""16 bytes that stand for a message, as the client saw it, and for everything before it."""


class Call(NamedTuple):
    """A call in canonical form. id: says which of the conversation's calls it is. arguments: JSON with sorted keys."""

    id: str
    name: str
    arguments: str


class Turn(NamedTuple):
    """A message in canonical order. A tuple, because whole conversations are compared on the way of every request.

    name: of the function whose result it is.
    """

    role: str
    content: str
    tool_call_id: str | None = None
    tool_calls: tuple[Call, ...] = ()
    reasoning: str = ""
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template renders.

    sources: of each turn, its index in the request (the first one's, if merged).
    breakpoints: (turn, how many characters of its content are before it, the breakpoint), in order.
    options: variables for the template, by name. messages, tools: what it was made of.
    """

    turns: tuple[Turn, ...]
    sources: tuple[int, ...]
    schemas: list[dict[str, Any]]
    moves: tuple[Move, ...] = ()
    breakpoints: tuple[tuple[int, int, Breakpoint], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class _Piece:
    """What moves as a whole inside the leading system block: a message, or one part of it. `path`: its place before."""

    message: int
    text: str
    path: str
    breakpoint: Breakpoint | None = None


def canonical(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    stable_first: bool = False,
    options: tuple[tuple[str, Any], ...] = (),
) -> Conversation:
    """stable_first: inside the leading system block, parts marked with `prompt_cache_breakpoint` go first."""
    order, num_leading = _canonical_order(messages)
    tool_order = sorted(range(len(tools)), key=lambda index: tools[index].name)
    pieces = [piece for index in order[:num_leading] for piece in _pieces(index, messages[index])]
    piece_order = sorted(range(len(pieces)), key=lambda at: stable_first and not pieces[at].breakpoint)
    content, system_breakpoints = _joined([pieces[at] for at in piece_order])
    leading = [Turn("system", content)] if num_leading else []
    later = [messages[index] for index in order[num_leading:]]
    sources = order[:1] + order[num_leading:] if num_leading else order
    return Conversation(
        turns=(*leading, *_turns(later)),
        sources=tuple(sources),
        schemas=[_sorted_keys(_schema(tools[index])) for index in tool_order],
        moves=(
            *_moves("messages", order[:num_leading]),
            *_moves("messages[0].content", piece_order, [piece.path for piece in pieces]),
            *_moves("tools", tool_order),
        ),
        breakpoints=(
            *((0, at, point) for at, point in system_breakpoints),
            *(
                (turn, part.end, part.breakpoint)
                for turn, message in enumerate(later, len(leading))
                for part in message.parts
                if part.breakpoint
            ),
        ),
        options=options,
        messages=tuple(messages),
        tools=tuple(tools),
    )


def continued(
    before: Conversation, messages: tuple[Message, ...], tools: tuple[Tool, ...], options: tuple[tuple[str, Any], ...]
) -> Conversation | None:
    """`canonical` of messages that are those of `before`, a reply to them, and maybe more. None if they are not.

    The reply ends what may change its place, so the beginning stays as it is: it is compared, by C, and not walked.
    """
    num_known = len(before.messages)
    new = messages[num_known:]
    if not new or new[0].role != "assistant" or any(message.parts for message in new):
        return None
    if messages[:num_known] != before.messages or not is_written_as((tools, options), (before.tools, before.options)):
        return None
    return replace(
        before,
        turns=(*before.turns, *_turns(new, before.messages)),
        sources=(*before.sources, *range(num_known, len(messages))),
        messages=(*before.messages, *new),
    )


def is_written_as(values: Any, others: Any) -> bool:
    """Equal, and in a prompt too: `1`, `1.0` and `True` are equal and are not written the same."""
    return values is others or (values == others and repr(values) == repr(others))


def turn_keys(key: bytes, conversation: Conversation) -> Iterator[TurnKey]:
    """Keys of "nothing yet", of the first turn, of the second, and so on: one more than there are turns.

    key: at most 64 bytes that bind model, tenant and salt; without it nobody can compute a key, or test a guess.
    """
    before: Any = [conversation.schemas, conversation.options] if conversation.options else conversation.schemas
    schemas = json.dumps(before, sort_keys=True, separators=(",", ":")).encode()
    last = blake2b(schemas, digest_size=16, key=key, person=_TURN_PERSON).digest()
    yield TurnKey(last)
    for turn in conversation.turns:
        last = turn_key(last, turn)
        yield TurnKey(last)


def turn_key(parent: bytes, turn: Turn) -> TurnKey:
    """The key of `turn` after what `parent` stands for. Lengths lead, so no two turns share an encoding.

    Thoughts are no part of it: clients need not send them back.
    """
    fields = [turn.role, turn.content]
    if turn.tool_call_id is not None or turn.tool_calls:
        fields.append(turn.tool_call_id or "")
    if turn.tool_calls:
        fields.append(json.dumps([call[1:] for call in turn.tool_calls]))
    encoded = [field.encode("utf-8", "surrogatepass") for field in fields]
    lengths = b"".join(len(field).to_bytes(8, "little") for field in encoded)
    return TurnKey(blake2b(b"".join([parent, lengths, *encoded]), digest_size=16, person=_TURN_PERSON).digest())


def _canonical_order(messages: Sequence[Message]) -> tuple[list[int], int]:
    """Indices of `messages` in canonical order, and how many of them are the leading system block."""
    roles = [message.role for message in messages]
    first_reply = roles.index("assistant") if "assistant" in roles else len(roles)
    leading = [index for index in range(first_reply) if roles[index] in SYSTEM_ROLES]
    others = [index for index in range(first_reply) if roles[index] not in SYSTEM_ROLES]
    return [*leading, *others, *range(first_reply, len(roles))], len(leading)


def _pieces(index: int, message: Message) -> list[_Piece]:
    """Empty ones vanish: merging would leave a gap for them."""
    if not message.parts:
        return [_Piece(index, message.content, f"messages[{index}]")] if message.content else []
    return [
        _Piece(index, message.content[part.start : part.end], f"messages[{index}].content[{at}]", part.breakpoint)
        for at, part in enumerate(message.parts)
        if part.start < part.end
    ]


def _joined(pieces: Sequence[_Piece]) -> tuple[str, list[tuple[int, Breakpoint]]]:
    """One system message for the whole leading block: many templates take only one, and only at the front.

    Parts of one message follow each other as they stand, messages after a blank line. Second: where breakpoints stand.
    """
    text = ""
    breakpoints = []
    for before, piece in zip([None, *pieces], pieces, strict=False):
        text += (_MERGED_BY if before and before.message != piece.message else "") + piece.text
        if piece.breakpoint:
            breakpoints.append((len(text), piece.breakpoint))
    return text, breakpoints


def _turns(messages: Sequence[Message], before: Sequence[Message] = ()) -> Iterator[Turn]:
    """Calls are numbered: their ids are drawn anew for each reply, and a template that writes them must not tell.

    before: what stands before these messages; its calls have the first numbers.
    """
    earlier = [call for message in before if message.tool_calls for call in message.tool_calls]
    numbered = {call.id: (_call_number(number), call.name) for number, call in enumerate(earlier)}
    num_calls = len(earlier)
    for message in messages:
        role = "system" if message.role in SYSTEM_ROLES else message.role
        if message.tool_call_id is None and not message.tool_calls:
            yield Turn(role, message.content, None, (), message.reasoning)
            continue
        calls = []
        for call in message.tool_calls:
            number = _call_number(num_calls)
            num_calls += 1
            numbered[call.id] = number, call.name
            calls.append(Call(number, call.name, canonical_arguments(call.arguments)))
        call_id, name = numbered.get(message.tool_call_id or "", (message.tool_call_id, None))
        yield Turn(role, message.content, call_id, tuple(calls), message.reasoning, name)


def _call_number(number: int) -> str:
    return f"call{number:05d}"  # nine letters and digits: some templates take no other


def canonical_arguments(arguments: str) -> str:
    """JSON with sorted keys and nothing escaped that need not be, as models write it; text that is no JSON as it is.

    `1.0` is `1`, as clients in JavaScript send it back. Dialects and templates take the JSON apart later: an escape
    that became a control token's text only then would be one that nobody has neutralised. What nests too deep to be
    looked into is one string; half a surrogate pair, `?`.
    """
    try:
        canonical = json.dumps(json.loads(arguments, parse_float=_number), ensure_ascii=False, sort_keys=True)
    except RecursionError:
        canonical = json.dumps(arguments, ensure_ascii=False)
    except ValueError:
        canonical = arguments
    return canonical.encode("utf-8", "replace").decode()


def _number(written: str) -> int | float:
    """Whole numbers are integers, so far as a double has all of them."""
    number = float(written)
    return int(number) if number.is_integer() and abs(number) <= _EXACT_IN_DOUBLES else number


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
