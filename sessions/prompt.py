"""What passes between rendering and encoding: ChatTemplate, Segment, ContentSpan, Prompt. Pure."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sessions.control_tokens import ControlTokens
from sessions.dialect import Dialect
from sessions.reports import Move
from sessions.types import TokenId


class TemplateError(Exception):
    """The chat template raised on this conversation; the text is the template's own."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's chat template, ready to run.

    apply: (messages, tools or None, add_generation_prompt, **options) -> text; raises TemplateError.
    digest: of its source and of what is pinned in it. dialect: what it writes of tools and thoughts.
    options: names of the variables that it reads and a client may set. writes_each_alone: what it makes of a message
    depends on that and on the first one only.
    """

    apply: Callable[..., str]
    control_tokens: ControlTokens
    digest: str
    dialect: Dialect = field(default_factory=Dialect)
    options: frozenset[str] = frozenset()
    writes_each_alone: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """One control token (`control_id` is its id), or the plain text between two. `start` is its offset in the
    text. said: ids that a model generated for the text, which is all of a reply then."""

    start: int
    text: str
    control_id: TokenId | None = None
    said: Sequence[TokenId] | None = None


@dataclass(frozen=True, slots=True)
class ContentSpan:
    """`text[start:end]` of a prompt is the content of `messages[message]`, possibly stripped by the template.

    The merged leading system block counts as the first message in it.
    """

    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a template made of a conversation in which `hole`, a code point, holds the replies at `turns`: they stand as
    they were generated, whatever the template would make of them."""

    text: str
    hole: str
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation.

    segments cover `text` from left to right, after the part whose tokens are `known_ids` (none, if it was all new).
    contents: where each non-empty content stands, in order; empty if the template did more than strip one, and where
    the beginning was known.
    needed_stand_ins: a client wrote something that looks like a control token. held: where whole replies are in it.
    """

    text: str
    segments: tuple[Segment, ...]
    contents: tuple[ContentSpan, ...]
    moves: tuple[Move, ...]
    known_ids: Sequence[int] = ()
    needed_stand_ins: bool = False
    held: Held | None = None

    def content_at(self, offset: int) -> ContentSpan | None:
        """The content that covers `text[offset]`; None where the template wrote it."""
        index = bisect_right(self.contents, offset, key=lambda span: span.start) - 1
        if index < 0 or offset >= self.contents[index].end:
            return None
        return self.contents[index]

    def contents_within(self, segment: Segment) -> Sequence[ContentSpan]:
        """The contents that lie wholly inside a plain segment, in order."""
        first = bisect_right(self.contents, segment.start - 1, key=lambda span: span.start)
        last = bisect_right(self.contents, segment.start + len(segment.text), key=lambda span: span.end)
        return self.contents[first:last]
