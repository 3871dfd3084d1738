"""Transcripts: a prompt and its reply, so that the next turn of the conversation looks at its new messages alone. Pure.

Opening      a prompt that was rendered and encoded      ┐
Said         what is being said after it                 ├ Transcript: the beginning of the next prompt
                                                         ┘
"""

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain as chained
from typing import Any, Final

from sessions.control_tokens import unused_code_points
from sessions.conversation import Conversation, Turn, TurnKey
from sessions.hashing import HashChain
from sessions.prompt import Held
from sessions.render import Known
from sessions.reply_parser import Reading, ReplyPiece
from sessions.types import BlockHash
from sessions.whole_replies import Spliced

_TURN_BYTES: Final = 216
"""A turn and the message it was made of, which have the same text."""
_ID_BYTES: Final = 4 + 8  # in the array, and a place in its block's run: ids are interned
_BLOCK_BYTES: Final = 57 + 64  # a hash, bytes of 16, and an empty tuple, its run; a place in a list for each


@dataclass(slots=True)
class Said:
    """A reply under way: its ids so far, their text, and what its client was told of it, piece by piece."""

    ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    told: list[ReplyPiece] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reading(self) -> Reading:
        return Reading.of(self.told)


@dataclass(frozen=True, slots=True)
class Transcript:
    """A prompt and its reply. key: stands for all of it. chain: the hashes of `known.ids`. num_spliced: replies in it
    whose ids are those that were generated. conversation: the prompt's. said: the reply as its client saw it.
    num_turn_bytes: memory that the conversation takes. salted_of: as in `Opening`.
    """

    conversation: Conversation
    said: Turn
    known: Known
    chain: HashChain
    key: TurnKey
    num_spliced: int
    num_turn_bytes: int
    salted_of: BlockHash | None = None

    @classmethod
    def of(cls, opening: "Opening", key: TurnKey, said: Turn, fit: Spliced) -> "Transcript | None":
        """After a reply. fit: the ids of all of `said`, or of its content. None where its prompt cannot be taken up."""
        if opening.text is None:
            return None
        conversation, held = opening.conversation, opening.held
        num_turns = len(conversation.turns)
        reply = said.content if fit.whole is None else fit.whole
        if fit.whole is not None:
            held = held or Held(opening.text, next(unused_code_points([opening.text])), ())
            held = Held(held.text + held.hole, held.hole, (*held.turns, num_turns))
        elif held is not None:
            held = replace(held, text=held.text + reply)
        chain = opening.chain
        ids = array("I", opening.token_ids[: chain.num_tokens])
        ids.extend(fit.ids)
        chain.extend(fit.ids)
        before = opening.continues
        num_seen, num_turn_bytes = (0, 0) if before is None else (len(before.turns), before.num_turn_bytes)
        return cls(
            conversation,
            said,
            Known(num_turns, opening.text, reply, fit.num_chars, ids, held),
            chain,
            key,
            opening.num_spliced + 1,
            num_turn_bytes + sum(map(_turn_bytes, conversation.turns[num_seen:])),
            opening.salted_of,
        )

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.conversation.turns

    @property
    def place(self) -> tuple[Any, ...]:
        return place_of(self.chain.root, len(self.turns), self.turns[-1].content, self.said)

    @property
    def num_bytes(self) -> int:
        return (
            self.num_turn_bytes
            + sys.getsizeof(self.known.text)
            + (0 if self.known.held is None else sys.getsizeof(self.known.held.text))
            + _ID_BYTES * len(self.known.ids)
            + _BLOCK_BYTES * len(self.chain.hashes)
        )


@dataclass(slots=True)
class Opening:
    """A prompt whose replies are to be remembered. key: stands for its conversation.

    root: its tenant's, or that of a salt; then salted_of is its tenant's.

    text: as rendered; None where it cannot be taken up again as it is (`Known`). held: as in `Prompt`. continues: the
    transcript it took up. num_settled_drops: as the prompt arrived (`Drops`). owner: its tenant's name. token_ids: as
    many as its chain has; its engine request may append to them.
    """

    root: BlockHash
    key: TurnKey
    conversation: Conversation
    text: str | None
    token_ids: Sequence[int]
    chain: HashChain
    num_spliced: int
    num_settled_drops: int = 0
    owner: str = ""
    held: Held | None = None
    continues: Transcript | None = None
    salted_of: BlockHash | None = None


def place_of(root: BlockHash, num_turns: int, content: str, said: Turn) -> tuple[Any, ...]:
    """Where a transcript is looked for; whether it is the one, its turns say. content: of the last before the reply."""
    return root, num_turns, content, said.content, tuple(call[1:] for call in said.tool_calls)


def _turn_bytes(turn: Turn) -> int:
    calls = list(chained.from_iterable(turn.tool_calls))
    texts = turn.content, turn.tool_call_id or "", turn.reasoning, *calls, *calls  # a message's are its own
    return _TURN_BYTES + sum(map(sys.getsizeof, texts))
