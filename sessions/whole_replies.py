"""Whole replies: does what was generated say what a client sends back, calls and thoughts included? Pure.

A reply with calls comes back in parts: content, calls, perhaps thoughts. Its ids stand for all of it, with the markers
that no client sees. So they are read as they were read for the client, and the parts compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sessions.conversation import Call, Conversation, Turn, canonical_arguments
from sessions.detokenizer import fitting
from sessions.dialect import Dialect
from sessions.reply_parser import Reading, read


@dataclass(frozen=True, slots=True)
class Spliced:
    """The leading `ids` stand for the first `num_chars` characters of a reply.

    whole: the text as it was generated, of which that is; then it stands in the place of all of the turn, else in that
    of its content.
    """

    ids: Sequence[int]
    num_chars: int
    whole: str | None = None


@dataclass(frozen=True, slots=True)
class WholeReplies:
    """keeps_thoughts: those of earlier replies stay in prompts. is_thinking: of a conversation, whether its prompt ends
    inside thoughts. moves: whether the template writes a reply elsewhere than where it was generated."""

    dialect: Dialect
    keeps_thoughts: bool
    is_thinking: Callable[[Conversation], bool]
    moves: Callable[[Conversation], bool] = lambda _: False

    def concern(self, conversation: Conversation, turn: Turn) -> bool:
        return self.dialect.thinks or bool(turn.tool_calls) or self.moves(conversation)

    def fitting(
        self, decode: Callable[[Sequence[int]], str], ids: Sequence[int], conversation: Conversation, turn: Turn
    ) -> Spliced | None:
        """As many of `ids` as say a beginning of the turn; all of it, if it has calls. ids: without an end of reply."""
        said = decode(ids)
        names = [schema["function"]["name"] for schema in conversation.schemas]
        reading = read(self.dialect, said, names=names, is_thinking=self.is_thinking(conversation))
        if not self._agrees(reading, turn):
            return None
        if turn.tool_calls:
            return Spliced(ids, len(said), said) if reading.text == turn.content else None
        if not reading.text or not said.endswith(reading.text):
            return None
        start = len(said) - len(reading.text)
        text = said[:start] + turn.content
        num_ids, num_chars = fitting(decode, ids, text)
        return Spliced(ids[:num_ids], num_chars, text) if num_chars > start else None

    def _agrees(self, reading: Reading, turn: Turn) -> bool:
        if reading.reasoning and not self.keeps_thoughts:
            return False
        if turn.reasoning and turn.reasoning != reading.reasoning:
            return False
        return calls_key(reading.calls) == [call[1:] for call in turn.tool_calls]


def calls_key(calls: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Calls as they are compared: what JSON does not tell apart is the same."""
    return [(name, canonical_arguments(arguments)) for name, arguments in calls]


def turn_of(reading: Reading) -> Turn:
    """The reply as its client sends it back."""
    return Turn("assistant", reading.text, tool_calls=tuple(Call("", *call) for call in calls_key(reading.calls)))
