"""The chat template: does a turn's prompt begin with all that was computed for the turn before it? Pure.

A conversation is rendered up to each reply, and once as a whole. What was computed by the time of a reply,

    computed    [ prompt up to the reply ........ ][ the reply, as the model says it ]
    whole       [ ....................................... ]  must begin with it

else the template is not append-stable for that construct, and everything after the place where they part is computed
again with every turn. Each construct is tried as the template alone would have it, and with the replies put in as they
were generated (token-exact turns), which is what a server does that generated them itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sessions.conversation import canonical
from sessions.dialect import THINK_CLOSE, THINK_OPEN
from sessions.doctor.finding import Finding, failure, fine, warning
from sessions.errors import InvalidRequest
from sessions.prompt import Prompt
from sessions.render import SaidTurn, render
from sessions.reply_edges import opens_thoughts
from sessions.tokenizer import Tokenizer
from sessions.types import Message, Tool, ToolCall

_SCOPE: Final = "doctor"
_SYSTEM: Final = Message("system", "You are the assistant of a small library. Answer in one sentence.")
_ASKED: Final = Message("user", "How long may I keep a book?")
_SAID: Final = Message("assistant", "Four weeks, and four more if nobody waits for it.")
_NEXT: Final = Message("user", "And a film?")
_LAST: Final = Message("user", "Thank you.")
_TOOL: Final = Tool(
    "find_book",
    "Looks a title up in the catalogue.",
    {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
)
_CALL: Final = ToolCall("call_1", "find_book", '{"title": "Middlemarch"}')
_FOUND: Final = Message("tool", "On the second floor.", tool_call_id="call_1")
_THOUGHT: Final = "Books are lent for four weeks. I should say so."


@dataclass(frozen=True, slots=True)
class Construct:
    """A conversation that holds one thing that templates treat in ways of their own."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


TURNS: Final = Construct("turns", (_ASKED, _SAID, _NEXT, _SAID, _LAST))
CONSTRUCTS: Final = (
    TURNS,
    Construct("a system message", (_SYSTEM, _ASKED, _SAID, _NEXT)),
    Construct("a later system message", (_SYSTEM, _ASKED, _SAID, Message("system", "Be brief."), _NEXT, _SAID, _LAST)),
    Construct("two questions in a row", (_ASKED, _NEXT, _SAID, _LAST)),
    Construct("white space around a reply", (_ASKED, Message("assistant", "\n  Four weeks.\n\n"), _NEXT)),
    Construct("an empty reply", (_ASKED, Message("assistant", ""), _NEXT)),
    Construct("thoughts", (_ASKED, Message("assistant", _SAID.content, reasoning=_THOUGHT), _NEXT)),
    Construct("tools", (_SYSTEM, _ASKED, _SAID, _NEXT, _SAID, _LAST), (_TOOL,)),
    Construct(
        "tool calls", (_ASKED, Message("assistant", tool_calls=(_CALL,)), _FOUND, _SAID, _NEXT, _SAID, _LAST), (_TOOL,)
    ),
    Construct(
        "thoughts before tool calls",
        (_ASKED, Message("assistant", tool_calls=(_CALL,), reasoning=_THOUGHT), _FOUND, _SAID, _NEXT),
        (_TOOL,),
    ),
)


@dataclass(frozen=True, slots=True)
class Broken:
    """Of `num_computed` tokens the next turn finds `num_kept`; where they part, `computed` and `rendered` follow."""

    num_computed: int
    num_kept: int
    computed: str
    rendered: str


def template_findings(tokenizer: Tokenizer) -> Iterator[Finding]:
    """One finding for all that holds, one for each construct that does not."""
    num_stable = 0
    for construct in CONSTRUCTS:
        if _has_no_thoughts(tokenizer, construct):
            num_stable += 1  # the model does not think: there is nothing to leave out
            continue
        finding = _tried(tokenizer, construct)
        if finding is None:
            num_stable += 1
        else:
            yield finding
    figure = f"append-stable in {num_stable} of {len(CONSTRUCTS)} constructs"
    if num_stable == len(CONSTRUCTS):
        yield fine("template", figure)
    else:
        yield warning("template", figure, "see the lines above.")


def date_finding(tokenizer: Tokenizer, on_another_day: Tokenizer) -> Finding | None:
    """Of a template that prints today's date; None if it does not. The two differ in what `now` is to them."""
    messages = (_SYSTEM, _ASKED)
    if _rendered(tokenizer, messages, ()).text == _rendered(on_another_day, messages, ()).text:
        return None
    return fine("template: a date", "printed, and held at 26 July 2024, so that midnight loses nothing")


def _has_no_thoughts(tokenizer: Tokenizer, construct: Construct) -> bool:
    return not tokenizer.template.dialect.thinks and any(message.reasoning for message in construct.messages)


def _tried(tokenizer: Tokenizer, construct: Construct) -> Finding | None:
    """None: it holds."""
    check = f"template: {construct.name}"
    try:
        alone = first_break(tokenizer, construct, splices=False)
        spliced = None if alone is None else first_break(tokenizer, construct, splices=True)
    except InvalidRequest as refusal:
        reason = refusal.message.rstrip(".")
        if construct is TURNS:
            return failure(check, reason, "give the model another chat template: this one takes no conversation.")
        return warning(check, reason, "do not send it: such requests are refused by this model's template.")
    if alone is None:
        return None
    figure = f"{alone.num_kept} of {alone.num_computed} tokens are kept; {alone.computed!r} becomes {alone.rendered!r}"
    if spliced is None:
        return warning(
            check, figure, "nothing, for replies of this server, which are put in as generated; others are read anew."
        )
    if construct is TURNS:
        return failure(check, figure, "give the model another chat template: with this one every turn starts anew.")
    return warning(check, figure, "such turns are correct and reuse less: leave it out, or change the chat template.")


def first_break(tokenizer: Tokenizer, construct: Construct, *, splices: bool) -> Broken | None:
    """The first reply whose next turn does not begin with what was computed. Raises InvalidRequest."""
    messages = construct.messages
    whole = _rendered(tokenizer, messages, construct.tools, splices=splices)
    for at, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _rendered(tokenizer, messages[:at], construct.tools, splices=splices)
        said = "" if message.tool_calls and not splices else _as_generated(tokenizer, message)
        computed = before.text + said
        num_shared = _num_shared(computed, whole.text)
        if num_shared < len(computed):
            ids = len(tokenizer.encode(before, scope=_SCOPE)) + len(tokenizer.encode_text(said, scope=_SCOPE))
            [kept] = tokenizer.tokens_before(whole, [num_shared], scope=_SCOPE)
            shown = slice(num_shared, num_shared + 24)
            return Broken(ids, min(kept, ids), computed[shown], whole.text[shown])
    return None


def _num_shared(left: str, right: str) -> int:
    """How many leading characters two texts have in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(left), len(right)))


def _rendered(
    tokenizer: Tokenizer, messages: tuple[Message, ...], tools: tuple[Tool, ...], *, splices: bool = False
) -> Prompt:
    said = {}
    for at, message in enumerate(messages):
        if splices and message.role == "assistant":
            text = _as_generated(tokenizer, message)
            said[at] = SaidTurn(text, tokenizer.encode_text(text, scope=_SCOPE))
    return render(canonical(messages, tools), tokenizer.template, said=said)


def _as_generated(tokenizer: Tokenizer, message: Message) -> str:
    """What the model says for this message; a call stands for itself, whatever its form."""
    opening = "" if opens_thoughts(tokenizer.template, ()) else f"{THINK_OPEN}\n"
    thought = f"{opening}{message.reasoning}\n{THINK_CLOSE}\n\n" if message.reasoning else ""
    calls = "".join(f'{{"name": "{call.name}", "arguments": {call.arguments}}}' for call in message.tool_calls)
    return thought + message.content + calls
