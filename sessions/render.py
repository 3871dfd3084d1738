"""Rendering: a canonical conversation through the model's chat template, as text, segments and located contents. Pure.

Two requests that mean the same give the same text (`conversation.py` has the canonical order), and appending turns
never changes what was rendered before them, as far as the model's own template allows.

    known.text            [ prompt of the last turn ... <|im_start|>assistant\\n ]
    + known.reply         [ .................................................. reply ]
    text of this turn     [ .................................................. reply<|im_end|>\\n<|im_start|>user ... ]
    segments cover                                                                  └──────────── the rest only ┘
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sessions.control_tokens import NoStandInError, StandIns
from sessions.conversation import Conversation, Turn
from sessions.errors import InvalidRequest
from sessions.prompt import ChatTemplate, ContentSpan, Prompt, Segment, TemplateError


@dataclass(frozen=True, slots=True)
class Known:
    """A beginning of a conversation that was rendered and encoded before.

    The first `num_turns` turns rendered to `text`, in which no stand-in was needed; then the model said `reply`, which
    is the next turn's content. `ids` are the tokens of `text` and of the first `num_reply_chars` of the reply.
    """

    num_turns: int
    text: str
    reply: str
    num_reply_chars: int
    ids: "array[int]"


def render(
    conversation: Conversation,
    template: ChatTemplate,
    *,
    add_generation_prompt: bool = True,
    known: Known | None = None,
) -> Prompt:
    """With `add_generation_prompt` the text ends where the assistant's reply begins.

    known: saves looking at that part again, if the template leaves it as it was; the result then says so.
    Raises InvalidRequest when the template refuses the conversation, naming the message where one is to blame.
    """
    if conversation.schemas and not template.takes_tools:
        raise InvalidRequest("This model's chat template has no place for tools.", param="tools")
    prompt = _continued(conversation, template, known) if known is not None and add_generation_prompt else None
    return prompt or _whole(conversation, template, add_generation_prompt)


def _whole(conversation: Conversation, template: ChatTemplate, add_generation_prompt: bool) -> Prompt:
    turns, schemas, stand_ins = _neutralise(conversation.turns, conversation.schemas, template)
    text = stand_ins.unescape(_applied(conversation, turns, schemas, template, add_generation_prompt))
    skeleton = _skeleton(template, turns, schemas, add_generation_prompt, stand_ins.spare)
    return Prompt(
        text=stand_ins.restore(text),
        segments=_segments(text, template, stand_ins),
        contents=_locate_contents(text, turns, conversation.sources, skeleton),
        moves=conversation.moves,
        needed_stand_ins=bool(stand_ins.of),
    )


def _continued(conversation: Conversation, template: ChatTemplate, known: Known) -> Prompt | None:
    """Only what follows the known reply is looked at. None where that might differ from looking at all of it."""
    turns, _, stand_ins = _neutralise(conversation.turns[known.num_turns :], [], template)
    if stand_ins.of:
        return None
    schemas = conversation.schemas or None
    text = _applied(conversation, (*conversation.turns[: known.num_turns], *turns), schemas, template, True)
    start = len(known.text) + known.num_reply_chars
    end = len(known.text) + len(known.reply)
    if not (text.startswith(known.text) and text.startswith(known.reply, len(known.text))):
        return None
    segments = _segments(text[end:], template, stand_ins)
    first = template.control_tokens.at(segments[0].text) if segments and segments[0].control_id is not None else None
    if first is None or first.lstrip or first.single_word:  # these look at what is before them
        return None
    rest = [replace(segment, start=end + segment.start) for segment in segments]
    cut = [Segment(start, text[start:end])] if start < end else []
    return Prompt(text, (*cut, *rest), (), conversation.moves, known.ids)


def _applied(
    conversation: Conversation,
    turns: Sequence[Turn],
    schemas: list[dict[str, Any]] | None,
    template: ChatTemplate,
    add_generation_prompt: bool,
) -> str:
    try:
        return template.apply([turn.holding(turn.content) for turn in turns], schemas, add_generation_prompt)
    except TemplateError as refusal:
        raise _refused(refusal, template, turns, conversation.sources, schemas) from refusal


def _neutralise(
    turns: Sequence[Turn], schemas: list[dict[str, Any]], template: ChatTemplate
) -> tuple[list[Turn], list[dict[str, Any]] | None, StandIns]:
    """Every string that a client wrote, made safe for the template, which expects None for no tools."""
    contents = [turn.content for turn in turns]
    call_ids = [turn.tool_call_id for turn in turns]
    try:
        (contents, call_ids, schemas), stand_ins = template.control_tokens.neutralise([contents, call_ids, schemas])
    except NoStandInError:
        raise InvalidRequest("The messages use every private-use code point.", param="messages") from None
    neutral = [
        Turn(turn.role, content, call_id) for turn, content, call_id in zip(turns, contents, call_ids, strict=True)
    ]
    return neutral, schemas or None, stand_ins


def _refused(
    refusal: TemplateError,
    template: ChatTemplate,
    turns: Sequence[Turn],
    sources: Sequence[int],
    schemas: list[dict[str, Any]] | None,
) -> InvalidRequest:
    """Blame a system message if the template accepts the rest: without the later ones, then without any."""
    for first_allowed in (1, 0):
        blamed = next((at for at in range(first_allowed, len(turns)) if turns[at].role == "system"), None)
        kept = [turn for at, turn in enumerate(turns) if at < first_allowed or turn.role != "system"]
        if kept and blamed is not None and _accepts(template, kept, schemas):
            return InvalidRequest(
                f"This model's chat template does not take a system message here: {refusal}",
                param=f"messages[{sources[blamed]}].role",
            )
    return InvalidRequest(f"This model's chat template refuses the conversation: {refusal}", param="messages")


def _accepts(template: ChatTemplate, turns: Sequence[Turn], schemas: list[dict[str, Any]] | None) -> bool:
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
    turns: Sequence[Turn],
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


def _locate_contents(
    text: str, turns: Sequence[Turn], sources: Sequence[int], skeleton: Sequence[str]
) -> tuple[ContentSpan, ...]:
    """Lay contents into the skeleton and check that this is `text`, so a located content is never a guess."""
    filled = [(source, turn) for source, turn in zip(sources, turns, strict=True) if turn.content.strip()]
    if len(skeleton) != len(filled) + 1 or not text.startswith(skeleton[0]):
        return ()
    spans = []
    at = len(skeleton[0])
    for (source, turn), after in zip(filled, skeleton[1:], strict=True):
        for content in (turn.content, turn.content.strip(), turn.content.rstrip(), turn.content.lstrip()):
            end = at + len(content)
            if text.startswith(content, at) and text.startswith(after, end):
                break
        else:
            return ()
        spans.append(ContentSpan(source, at, end))
        at = end + len(after)
    return tuple(spans) if at == len(text) else ()
