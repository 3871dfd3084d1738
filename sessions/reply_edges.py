"""Reply edges: where a reply was generated, in what a template writes of it later. Measured on the template. Pure.

    the prompt ended            ...<|im_start|>assistant\\n<think>\\n
    the template writes         ...<|im_start|>assistant\\n          a reply<|im_end|>\\n
                                                     cut ┘└ lead     └ stands where it was generated, whatever it is

A reply is held by one code point, the hole, as its content; or as the name of a call, where a template takes no reply
without one at that place (Mistral's: what is no call must alternate with users).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sessions.conversation import Call, Turn
from sessions.dialect import THINK_OPEN
from sessions.prompt import ChatTemplate, TemplateError

_ASKED: Final = Turn("user", "probe question")
_SAID: Final = Turn("assistant", "probe reply")
_NAME: Final = "probe_function"


@dataclass(frozen=True, slots=True)
class ReplyEdges:
    """lead: what only the prompt for a reply has (`<think>` that it opens). cut: what the template writes there later.

    call: what it writes around the name of a call without arguments, to its end. None where that cannot be told.
    """

    lead: str
    cut: str
    call: tuple[str, str] | None = None

    def around(self, text: str, hole: str) -> str | None:
        """`text` with every hole where its reply was generated. None if one is elsewhere."""
        if self.call is not None:
            text = text.replace(hole.join(self.call), self.cut + hole)
        if text.count(self.cut + hole) != text.count(hole):
            return None
        return text.replace(self.cut + hole, self.lead + hole)


def hole_turn(hole: str) -> Turn:
    return Turn("assistant", hole)


def call_hole_turn(hole: str) -> Turn:
    return Turn("assistant", "", tool_calls=(Call("call00000", hole, "{}"),))


def opens_thoughts(template: ChatTemplate, options: tuple[tuple[str, Any], ...]) -> bool:
    """Does the prompt for a reply end inside thoughts?"""
    edges = reply_edges(template, options)
    return edges is not None and edges.lead.rstrip().endswith(THINK_OPEN)


def moves_replies(template: ChatTemplate, options: tuple[tuple[str, Any], ...]) -> bool:
    """Does it write a reply elsewhere than where it was generated (after a space of its own)?"""
    edges = reply_edges(template, options)
    return edges is not None and edges.lead != edges.cut


@lru_cache(maxsize=64)
def reply_edges(template: ChatTemplate, options: tuple[tuple[str, Any], ...]) -> ReplyEdges | None:
    """None if the template does not write a reply as it is given."""
    opened = _written(template, (_ASKED,), options, is_open=True)
    written, found, _ = _written(template, (_ASKED, _SAID, _ASKED), options).partition(_SAID.content)
    shared = next((at for at, pair in enumerate(zip(opened, written, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(opened), len(written)) if shared is None else shared
    if not found or not shared:
        return None
    return ReplyEdges(opened[shared:], written[shared:], _around_call(template, options, opened[:shared]))


def _around_call(template: ChatTemplate, options: tuple[tuple[str, Any], ...], opened: str) -> tuple[str, str] | None:
    _, _, end = _written(template, (_ASKED, _SAID), options).partition(_SAID.content)
    written = _written(template, (_ASKED, call_hole_turn(_NAME)), options)
    before, found, after = written.removeprefix(opened).partition(_NAME)
    is_whole = found and written.startswith(opened) and after.endswith(end) and template.dialect.arguments != "none"
    return (before, after.removesuffix(end)) if is_whole else None


def _written(
    template: ChatTemplate, turns: tuple[Turn, ...], options: tuple[tuple[str, Any], ...], *, is_open: bool = False
) -> str:
    """Nothing where the template refuses."""
    try:
        return template.dialect.apply(template.apply, turns, None, is_open, **dict(options))
    except TemplateError:
        return ""
