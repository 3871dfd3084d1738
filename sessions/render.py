"""Rendering: a canonical conversation through the model's chat template, as text, segments and located contents. Pure.

Two requests that mean the same give the same text (`conversation.py` has the canonical order), and appending turns
never changes what was rendered before them, as far as the model's own template allows.

    known.text            [ prompt of the last turn ... <|im_start|>assistant\\n ]
    + known.reply         [ .................................................. reply ]
    text of this turn     [ .................................................. reply<|im_end|>\\n<|im_start|>user ... ]
    segments cover                                                                  └──────────── the rest only ┘
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from sessions.control_tokens import NoStandInError, StandIns
from sessions.conversation import Call, Conversation, Turn
from sessions.errors import InvalidRequest
from sessions.prompt import ChatTemplate, ContentSpan, Held, Prompt, Segment, TemplateError
from sessions.reply_edges import call_hole_turn, hole_turn, reply_edges
from sessions.types import TokenId


@dataclass(frozen=True, slots=True)
class Known:
    """A beginning of a conversation that was rendered and encoded before.

    The first `num_turns` turns rendered to `text`, in which no stand-in was needed; then the model said `reply`, which
    is the next turn's content, or all of it, calls and thoughts included. `ids` are the tokens of `text` and of the
    first `num_reply_chars` of the reply. held: text and reply, if some replies in them are whole.
    """

    num_turns: int
    text: str
    reply: str
    num_reply_chars: int
    ids: "array[int]"
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """A whole reply as it was generated: its text, calls and thoughts as the model wrote them, and its tokens."""

    text: str
    token_ids: Sequence[TokenId]


def render(
    conversation: Conversation,
    template: ChatTemplate,
    *,
    add_generation_prompt: bool = True,
    known: Known | None = None,
    said: Mapping[int, SaidTurn] | None = None,
) -> Prompt:
    """With `add_generation_prompt` the text ends where the assistant's reply begins.

    known: saves looking at that part again, if the template leaves it as it was; the result then says so.
    said: by turn, replies that stand as they were generated, whatever the template would make of them.
    Raises InvalidRequest when the template refuses the conversation, naming the message where one is to blame.
    """
    prompt = _continued(conversation, template, known) if known is not None and add_generation_prompt else None
    if prompt is None and said:
        prompt = _whole(conversation, template, add_generation_prompt, said)
    return prompt or _whole(conversation, template, add_generation_prompt, {})  # type: ignore[return-value]


def _whole(
    conversation: Conversation, template: ChatTemplate, add_generation_prompt: bool, said: Mapping[int, SaidTurn]
) -> Prompt | None:
    """None if what was said has no place in what the template makes of the rest."""
    inputs, stand_ins = _neutralise(conversation, conversation.turns, template)
    if not said:
        text = stand_ins.unescape(_applied(conversation, inputs, template, add_generation_prompt))
        skeleton = _skeleton(template, inputs, add_generation_prompt, stand_ins)
        return _prompt(conversation, template, inputs, stand_ins, text, skeleton)
    hole = stand_ins.hole
    holding = _holding(inputs, template, add_generation_prompt, tuple(sorted(said)), hole)
    if holding is None:
        return None
    inputs, text = holding
    text = stand_ins.unescape(text)
    skeleton = _skeleton(template, inputs, add_generation_prompt, stand_ins)
    edges = reply_edges(template, inputs.options)
    parts = [part for part in (edges.around(part, hole) for part in skeleton if edges) if part is not None]
    if len(parts) < len(skeleton):
        return None
    prompt = _prompt(conversation, template, inputs, stand_ins, text, parts)
    held = Held(prompt.text, hole, tuple(sorted(said)))
    return replace(_filled(prompt, hole, [said[at] for at in held.turns]), held=held)


def _prompt(
    conversation: Conversation,
    template: ChatTemplate,
    inputs: "_Inputs",
    stand_ins: StandIns,
    text: str,
    skeleton: Sequence[str],
) -> Prompt:
    """text, skeleton: what the template made of `inputs`, holes where they belong."""
    return Prompt(
        text=stand_ins.restore(text),
        segments=_segments(text, template, stand_ins),
        contents=_locate_contents(text, inputs.turns, conversation.sources, skeleton, stand_ins.hole),
        moves=conversation.moves,
        needed_stand_ins=bool(stand_ins.of),
    )


def _holding(
    inputs: "_Inputs", template: ChatTemplate, add_generation_prompt: bool, at: Sequence[int], hole: str
) -> tuple["_Inputs", str] | None:
    """What the template makes of it with holes for the replies `at`, where these were generated. Replies with calls are
    calls where it takes nothing else there. None if it takes neither, or puts them elsewhere."""
    edges = reply_edges(template, inputs.options)
    for turn_of_call in (hole_turn, call_hole_turn):
        turns = list(inputs.turns)
        for turn in at:
            turns[turn] = turn_of_call(hole) if turns[turn].tool_calls else hole_turn(hole)
        held = replace(inputs, turns=tuple(turns))
        try:
            text = edges.around(held.apply(template, add_generation_prompt), hole) if edges else None
        except TemplateError:
            continue
        return (held, text) if text is not None and text.count(hole) == len(at) else None
    return None


def _filled(prompt: Prompt, hole: str, replies: Sequence[SaidTurn]) -> Prompt:
    """The prompt with what was said in its holes, in order."""
    segments = []
    shift, remaining = 0, iter(replies)
    ends: list[tuple[int, int]] = []  # of each hole: its offset, and by how much what follows it moves
    for segment in prompt.segments:
        if segment.control_id is not None:
            segments.append(replace(segment, start=segment.start + shift))
            continue
        at = segment.start
        for number, part in enumerate(segment.text.split(hole)):
            if number:
                reply = next(remaining)
                segments.append(Segment(at + shift, reply.text, said=reply.token_ids))
                shift += len(reply.text) - 1
                at += 1
                ends.append((at, shift))
            if part:
                segments.append(Segment(at + shift, part))
                at += len(part)
    texts = [reply.text for reply in replies]
    pieces = prompt.text.split(hole)
    text = pieces[0] + "".join(chain.from_iterable(zip(texts, pieces[1:], strict=True)))
    contents = []
    for span in prompt.contents:
        moved = next((by for at, by in reversed(ends) if at <= span.start), 0)
        contents.append(ContentSpan(span.message, span.start + moved, span.end + moved))
    return replace(prompt, text=text, segments=tuple(segments), contents=tuple(contents))


def _continued(conversation: Conversation, template: ChatTemplate, known: Known) -> Prompt | None:
    """Only what follows the known reply is looked at. None where that might differ from looking at all of it."""
    new = replace(conversation, schemas=[], options=())
    inputs, stand_ins = _neutralise(new, conversation.turns[known.num_turns :], template)
    if stand_ins.of:
        return None
    turns = (*conversation.turns[: known.num_turns], *inputs.turns)
    inputs = _Inputs(turns, conversation.schemas or None, conversation.options)
    held = known.held
    if held is None:
        after = _grown(known, inputs, template)
        if after is None:
            after = _after(known.text + known.reply, _applied(conversation, inputs, template, True))
    else:
        holding = _holding(inputs, template, True, held.turns, held.hole)
        if holding is None:
            return None
        after, held = _after(held.text, holding[1]), replace(held, text=holding[1])
    if after is None:
        return None
    start, end = len(known.text) + known.num_reply_chars, len(known.text) + len(known.reply)
    segments = _segments(after, template, stand_ins)
    first = template.control_tokens.at(segments[0].text) if segments and segments[0].control_id is not None else None
    if first is None or first.lstrip or first.single_word:  # these look at what is before them
        return None
    rest = [replace(segment, start=end + segment.start) for segment in segments]
    cut = [Segment(start, known.reply[known.num_reply_chars :])] if start < end else []
    text = "".join((known.text, known.reply, after))
    return Prompt(text, (*cut, *rest), (), conversation.moves, known.ids, held=held)


def _after(beginning: str, text: str) -> str | None:
    """What follows `beginning` in `text`; None if that begins otherwise."""
    return text[len(beginning) :] if text.startswith(beginning) else None


def _grown(known: Known, inputs: "_Inputs", template: ChatTemplate) -> str | None:
    """What follows the known reply, without a look at all that is known, where the template lets us: it gets the first
    and the new turns. None if it does not, or if it might be another reply by now.

    known.text   [ first ][ others ][ opens a reply ]
    shut         [ first ]
    opened       [ first ][ opens a reply ]
    text         [ first ][ new, the known reply among them ][ opens a reply ]

    Of a long conversation's text, which is most of its bytes, nothing is copied here but its end.
    """
    if not template.writes_each_alone:
        return None
    first, new = inputs.turns[:1], inputs.turns[known.num_turns :]
    try:
        shut = replace(inputs, turns=first).apply(template, False)
        opened = replace(inputs, turns=first).apply(template, True)
        text = replace(inputs, turns=first + new).apply(template, True)
    except TemplateError:  # the whole of it will say whose fault it is
        return None
    opens_reply = known.text[len(known.text) - (len(opened) - len(shut)) :]
    return _after(opens_reply + known.reply, text[len(shut) :])


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a template is run on. Templates expect None for no tools."""

    turns: tuple[Turn, ...]
    schemas: list[dict[str, Any]] | None
    options: tuple[tuple[str, Any], ...] = ()

    def apply(self, template: ChatTemplate, add_generation_prompt: bool) -> str:
        """Raises TemplateError."""
        return template.dialect.apply(
            template.apply, self.turns, self.schemas, add_generation_prompt, **dict(self.options)
        )


def _applied(conversation: Conversation, inputs: _Inputs, template: ChatTemplate, add_generation_prompt: bool) -> str:
    try:
        return inputs.apply(template, add_generation_prompt)
    except TemplateError as refusal:
        raise _refused(refusal, template, inputs, conversation.sources) from refusal


def _neutralise(conversation: Conversation, turns: Sequence[Turn], template: ChatTemplate) -> tuple[_Inputs, StandIns]:
    """Every string that a client wrote, made safe for the template."""
    written = [[turn[1:] for turn in turns], conversation.schemas, [value for _, value in conversation.options]]
    try:
        (fields, schemas, values), stand_ins = template.control_tokens.neutralise(written)
    except NoStandInError:
        raise InvalidRequest("The messages use every private-use code point.", param="messages") from None
    names = [name for name, _ in conversation.options]
    neutral = tuple(
        Turn(turn.role, content, call_id, tuple(Call(*call) for call in calls), *rest)
        for turn, (content, call_id, calls, *rest) in zip(turns, fields, strict=True)
    )
    return _Inputs(neutral, schemas or None, tuple(zip(names, values, strict=True))), stand_ins


def _refused(refusal: TemplateError, template: ChatTemplate, inputs: _Inputs, sources: Sequence[int]) -> InvalidRequest:
    """Blame a system message if the template accepts the rest: without the later ones, then without any."""
    turns = inputs.turns
    for first_allowed in (1, 0):
        blamed = next((at for at in range(first_allowed, len(turns)) if turns[at].role == "system"), None)
        kept = tuple(turn for at, turn in enumerate(turns) if at < first_allowed or turn.role != "system")
        if kept and blamed is not None and _accepts(template, replace(inputs, turns=kept)):
            return InvalidRequest(
                f"This model's chat template does not take a system message here: {refusal}",
                param=f"messages[{sources[blamed]}].role",
            )
    return InvalidRequest(f"This model's chat template refuses the conversation: {refusal}", param="messages")


def _accepts(template: ChatTemplate, inputs: _Inputs) -> bool:
    try:
        inputs.apply(template, True)
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


def _skeleton(template: ChatTemplate, inputs: _Inputs, add_generation_prompt: bool, stand_ins: StandIns) -> list[str]:
    """What the template writes around k contents, as k + 1 pieces; none if that cannot be told."""
    marker = stand_ins.spare
    marked = tuple(
        turn._replace(content=marker) if turn.content.strip() and turn.content != stand_ins.hole else turn
        for turn in inputs.turns
    )
    try:
        return stand_ins.unescape(replace(inputs, turns=marked).apply(template, add_generation_prompt)).split(marker)
    except TemplateError:
        return []


def _locate_contents(
    text: str, turns: Sequence[Turn], sources: Sequence[int], skeleton: Sequence[str], hole: str
) -> tuple[ContentSpan, ...]:
    """Lay contents into the skeleton and check that this is `text`, so a located content is never a guess."""
    filled = [
        (source, turn)
        for source, turn in zip(sources, turns, strict=True)
        if turn.content.strip() and turn.content != hole
    ]
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
