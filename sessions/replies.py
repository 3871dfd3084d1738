"""Replies: what the model said, token by token, so that the next turn does not have to read it back from text. P1.

Text that is read back often gives other tokens than were generated (docs/token-exact-turns.md), and from there on
nothing that was computed can be reused. So the ids of a reply are kept under the key of the conversation before it and
of the reply as its client saw it (`conversation.turn_keys`), and put in the place of that text when it comes back.

    said, still running     ids and text grow; a client that left kept some beginning of it
    record                  a whole reply, or one that was cut off: ids; here and in Redis, so that others have it too
    transcript              the whole prompt with its reply: text, ids, hashes; here only. The next turn of the same
                            conversation then looks at its new messages alone

A record is believed only if its ids decode to the text. All of it is a hint: what is lost costs reuse. Event loop only.
"""

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgpack

from sessions.bounded import Bounded
from sessions.conversation import SYSTEM_ROLES, Conversation, Turn, TurnKey, canonical, is_written_as, turn_key
from sessions.detokenizer import fitting
from sessions.engine.drops import Drops
from sessions.reply_parser import Reading
from sessions.transcripts import Opening, Said, Transcript, place_of
from sessions.types import BlockHash, Message, TokenId
from sessions.whole_replies import Spliced, WholeReplies, turn_of

RECORD_BYTES: Final = 32 << 20
TRANSCRIPT_BYTES: Final = 128 << 20
MAX_FETCHED_TURNS: Final = 512
_FORMAT: Final = 1


class Shelf(Protocol):
    """Where records outlive this process: Redis, or nothing. `PrefixIndex` is one."""

    async def fetch_replies(self, root: BlockHash, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """One round trip within the budget; None when there is nobody to ask or no answer."""

    def keep_reply(self, root: BlockHash, key: bytes, record: bytes, salted_of: BlockHash | None = None) -> None:
        """Does not wait."""

    def forget_replies(self, root: BlockHash, *, and_salts: bool = False) -> None:
        """Does not wait."""


class Replies:
    """One per service.

    decode: the tokenizer's. control_ids: believed in what was said here, never from a shelf.
    is_lenient: clients may strip whitespace from the ends of replies. whole: reads those with calls and thoughts.
    drops: the pool's; a reply to what was dropped meanwhile, or that itself was, is not kept.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        control_ids: frozenset[TokenId],
        shelf: Shelf,
        *,
        vocab_size: int,
        drops: Drops,
        is_lenient: bool = False,
        whole: WholeReplies | None = None,
    ) -> None:
        self.drops = drops
        self._whole = whole
        self._decode = decode
        self._control_ids = control_ids
        self._shelf = shelf
        self._vocab_size = vocab_size
        self._is_lenient = is_lenient
        self._running: dict[TurnKey, list[Said]] = {}
        self._records: Bounded[tuple[BlockHash, bytes], _Record] = Bounded(
            RECORD_BYTES, lambda record: 4 * len(record.ids) + 360
        )
        self._transcripts: Bounded[tuple[Any, ...], Transcript] = Bounded(TRANSCRIPT_BYTES, lambda t: t.num_bytes)

    # -- the next turn --

    def seen(self, conversation: Conversation) -> Conversation:
        """The conversation as keys are made of it."""
        if not self._is_lenient:
            return conversation
        turns = tuple(
            turn._replace(content=turn.content.strip()) if turn.role == "assistant" else turn
            for turn in conversation.turns
        )
        return replace(conversation, turns=turns)

    def transcript(self, root: BlockHash, conversation: Conversation) -> Transcript | None:
        """What is known of the conversation up to its last reply, if that is known whole."""
        turns = conversation.turns
        last = next((at for at in range(len(turns) - 1, 0, -1) if turns[at].role == "assistant"), 0)
        found = self._transcripts.get(place_of(root, last, turns[last - 1].content, turns[last])) if last else None
        if found is None or found.turns != turns[:last] or turns[last].reasoning not in ("", found.said.reasoning):
            return None
        before = found.conversation
        is_same = is_written_as(conversation.schemas, before.schemas)
        return found if is_same and is_written_as(conversation.options, before.options) else None

    def beginning(self, root: BlockHash, messages: Sequence[Message]) -> Conversation | None:
        """The conversation that these messages may go on with a reply to it: if they do, they begin with its own.

        One message is put in order to find it, where `transcript` needs all of them to be.
        """
        last = next((at for at in range(len(messages) - 1, 0, -1) if messages[at].role == "assistant"), 0)
        if not last:
            return None
        first = next(at for at, message in enumerate(messages) if message.role == "assistant")
        num_leading = sum(message.role in SYSTEM_ROLES for message in messages[:first])
        (before, said) = self.seen(canonical(messages[last - 1 : last + 1], ())).turns[-2:]
        num_turns = last - max(0, num_leading - 1)  # those that lead become one
        found = self._transcripts.get(place_of(root, num_turns, before.content, said))
        return None if found is None else found.conversation

    def recent(self, root: BlockHash) -> Iterator[Transcript]:
        """The transcripts under `root`, the latest used first."""
        return (transcript for transcript in self._transcripts.latest() if transcript.chain.root == root)

    async def find(
        self,
        root: BlockHash,
        conversation: Conversation,
        keys: Sequence[TurnKey],
        salted_of: BlockHash | None = None,
    ) -> dict[int, Spliced]:
        """Turn index -> what was said there. keys: `turn_keys` of the conversation. salted_of: as in `Opening`."""
        turns = [
            at
            for at, turn in enumerate(conversation.turns)
            if turn.role == "assistant" and (turn.content or turn.tool_calls)
        ]
        wanted = [at for at in turns[:MAX_FETCHED_TURNS] if self._local(root, conversation, keys, at) is None]
        await self._fetch(root, [key for at in wanted for key in (keys[at + 1], _cut_key(keys[at]))], salted_of)
        found = {at: self._local(root, conversation, keys, at) for at in turns}
        return {at: spliced for at, spliced in found.items() if spliced is not None}

    def _local(self, root: BlockHash, conversation: Conversation, keys: Sequence[TurnKey], at: int) -> Spliced | None:
        """The reply itself; else one that was cut off, or is being said, of which this is a beginning."""
        whole = self._records.get((root, keys[at + 1]))
        if whole is not None:
            return self._fitting_turn(whole.ids, conversation, at)
        begun = [said.ids for said in self._running.get(keys[at], ())]
        cut = self._records.get((root, _cut_key(keys[at])))
        fits = [self._fitting_turn(ids, conversation, at) for ids in (*begun, *(() if cut is None else (cut.ids,)))]
        return max((fit for fit in fits if fit is not None), key=lambda fit: fit.num_chars, default=None)

    def _fitting_turn(self, ids: Sequence[int], conversation: Conversation, at: int) -> Spliced | None:
        turn = conversation.turns[at]
        if self._whole is not None and self._whole.concern(conversation, turn):
            fit = self._whole.fitting(self._decode, self._before_end(ids), conversation, turn)
            if fit is not None or turn.tool_calls:
                return fit
        return self.fitting(ids, turn.content)

    def _before_end(self, ids: Sequence[int]) -> Sequence[int]:
        end = len(ids)
        while end and ids[end - 1] in self._control_ids:
            end -= 1
        return ids[:end]

    async def _fetch(self, root: BlockHash, keys: Sequence[bytes], salted_of: BlockHash | None) -> None:
        records = await self._shelf.fetch_replies(root, keys) if keys else None
        for key, record in zip(keys, records or (), strict=False):
            ids = None if record is None else _unpacked(record)
            if ids and self._control_ids.isdisjoint(ids) and max(ids) < self._vocab_size:
                self._records.put((root, key), _Record(ids, salted_of))

    def fitting(self, ids: Sequence[int], text: str) -> Spliced | None:
        """As many leading `ids` as say nothing but a beginning of `text`, and no more of them than say it.

        A code point may end in the middle of the ids, and a stop string in the middle of a token: then a rest of the
        text is left. None if nothing fits. Lenient: whitespace around `text` may be missing.
        """
        ids = self._before_end(ids)
        whole = self._decode(ids) if self._is_lenient else ""
        if text and whole.strip() == text:
            return Spliced(ids, len(text))
        num_ids, num_chars = fitting(self._decode, ids, text)
        return Spliced(ids[:num_ids], num_chars) if num_ids else None

    def forget(self, root: BlockHash, *, and_salts: bool = False) -> None:
        """Everything under `root`, here and on the shelf. O(all).

        and_salts: `root` is a tenant's own; everything under its salts' roots too.
        """
        self._records.pop_all(lambda place, kept: place[0] == root or (and_salts and kept.salted_of == root))
        self._transcripts.pop_all(lambda place, kept: place[0] == root or (and_salts and kept.salted_of == root))
        self._shelf.forget_replies(root, and_salts=and_salts)

    # -- what is being said --

    def begin(self, opening: Opening, num_choices: int) -> list[Said]:
        choices = [Said() for _ in range(num_choices)]
        self._running.setdefault(opening.key, []).extend(choices)
        return choices

    def end(self, opening: Opening, said: Said, *, is_whole: bool, is_first: bool) -> None:
        """The reply is over: its client has the text, or left when it had some of it.

        is_first: of several choices, the one whose transcript is kept. Of each the record is.
        """
        running = self._running[opening.key]
        del running[next(at for at, other in enumerate(running) if other is said)]
        if not running:
            del self._running[opening.key]
        if not self._was_dropped(opening, said):
            self._keep(opening, said, is_whole=is_whole, is_first=is_first)

    def _was_dropped(self, opening: Opening, said: Said) -> bool:
        """Was any of the prompt or the reply, since the prompt arrived?"""
        if self.drops.is_newest(opening.num_settled_drops):
            return False
        chain = opening.chain.fork()
        chain.extend(said.ids)
        return self.drops.bars(opening.num_settled_drops, opening.owner, chain.branch, *chain.hashes)

    def _keep(self, opening: Opening, said: Said, *, is_whole: bool, is_first: bool) -> None:
        text, told = said.text, said.reading
        if is_whole and self._whole is not None and self._is_read(opening, told, text):
            ids = self._before_end(said.ids)
            num_ids, _ = fitting(self._decode, ids, text)
            turn = turn_of(told)
            key = turn_key(opening.key, turn)
            self._record(opening, key, said.ids[:num_ids])
            whole = self._whole.fitting(self._decode, ids[:num_ids], opening.conversation, turn) if is_first else None
            if whole is not None and whole.whole is not None:
                self._keep_transcript(opening, key, turn._replace(reasoning=told.reasoning), whole)
            return
        fit = self.fitting(said.ids, text) if is_whole else Spliced(said.ids, len(text))
        if fit is None or not fit.ids:
            return
        shown = text.strip() if self._is_lenient else text
        key = turn_key(opening.key, Turn("assistant", shown))
        self._record(opening, key if is_whole else _cut_key(opening.key), fit.ids)
        if is_whole and is_first:
            lost = len(text) - len(text.lstrip()) if self._is_lenient else 0
            num_chars = min(len(shown), max(0, fit.num_chars - lost))
            self._keep_transcript(opening, key, Turn("assistant", shown), replace(fit, num_chars=num_chars))

    def _is_read(self, opening: Opening, told: Reading, text: str) -> bool:
        """Is the reply more than its text, or stands that elsewhere later?"""
        assert self._whole is not None
        if told.calls or told.text != text or self._whole.dialect.thinks:
            return True
        is_stripped = self._is_lenient and text != text.strip()
        return not is_stripped and self._whole.moves(opening.conversation)

    def _record(self, opening: Opening, key: bytes, ids: Sequence[int]) -> None:
        kept = array("I", ids)
        self._records.put((opening.root, key), _Record(kept, opening.salted_of))
        if self._control_ids.isdisjoint(kept):  # from outside such a record would not be believed
            self._shelf.keep_reply(opening.root, key, _packed(kept), opening.salted_of)

    def _keep_transcript(self, opening: Opening, key: TurnKey, said: Turn, fit: Spliced) -> None:
        made = Transcript.of(opening, key, said, fit)
        if made is None:
            return
        if opening.continues is not None:
            self._transcripts.pop(opening.continues.place)
        self._transcripts.put(made.place, made)


@dataclass(frozen=True, slots=True)
class _Record:
    """The ids of a reply. salted_of: as in `Opening`."""

    ids: "array[int]"
    salted_of: BlockHash | None


def _cut_key(parent: TurnKey) -> TurnKey:
    """Of the reply after `parent` that was cut off last. No client's role is called so."""
    return turn_key(parent, Turn("cut off", ""))


def _packed(ids: "array[int]") -> bytes:
    data: bytes = msgpack.packb([_FORMAT, _little_endian(ids).tobytes()])
    return data


def _unpacked(record: bytes) -> "array[int] | None":
    """None for anything that is not a record of ours."""
    try:
        version, data = msgpack.unpackb(record)
        if version != _FORMAT or not isinstance(data, bytes):
            return None
        return _little_endian(array("I", data))
    except (ValueError, TypeError, msgpack.UnpackException):
        return None


def _little_endian(ids: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        ids = array("I", ids)
        ids.byteswap()
    return ids
