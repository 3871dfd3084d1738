"""Replies: what fits a text, what is kept and for whom, and that a bad record is no record."""

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.conversation import Conversation, Turn, TurnKey, canonical, continued, turn_keys
from sessions.detokenizer import StopStrings, TextStream
from sessions.engine.drops import Drops
from sessions.hashing import HashChain
from sessions.replies import Replies
from sessions.tokenizer import Tokenizer
from sessions.transcripts import Opening, Said, Transcript
from sessions.types import BlockHash, Breakpoint, Message, Part, ToolCall
from sessions.whole_replies import Spliced
from tests.fakes import byte_tokenizer

ROOT = BlockHash(b"r" * 16)


class DictShelf:
    """A shelf that a test can look into and spoil."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.num_fetches = 0

    async def fetch_replies(self, root: BlockHash, keys: Sequence[bytes]) -> list[bytes | None] | None:
        assert root == ROOT
        self.num_fetches += 1
        return [self.records.get(key) for key in keys]

    def keep_reply(self, root: BlockHash, key: bytes, record: bytes, salted_of: BlockHash | None = None) -> None:
        assert root == ROOT and salted_of is None
        self.records[key] = record

    def forget_replies(self, root: BlockHash, *, and_salts: bool = False) -> None:
        assert root == ROOT
        self.records.clear()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def shelf() -> DictShelf:
    return DictShelf()


def make(tokenizer: Tokenizer, shelf: DictShelf, **more: Any) -> Replies:
    return Replies(
        tokenizer.decode, tokenizer.control_ids, shelf, vocab_size=tokenizer.vocab_size, drops=Drops(), **more
    )


def conversation(*contents: str) -> Conversation:
    roles = ("user", "assistant")
    return canonical([Message(roles[at % 2], content) for at, content in enumerate(contents)], ())


def say(replies: Replies, tokenizer: Tokenizer, asked: Conversation, ids: list[int], *, is_whole: bool = True) -> Said:
    """As the service does it for a client that was sent all of the text."""
    *_, key = turn_keys(ROOT, asked)
    opening = Opening(ROOT, key, asked, "prompt ", [1, 2, 3], HashChain(ROOT, 4), 0)
    opening.chain.extend([1, 2, 3])
    (said,) = replies.begin(opening, 1)
    said.ids += ids
    stream = TextStream(tokenizer.decode, StopStrings(()), tokenizer.code_point_endings)
    said.pieces += [stream.decode(ids), stream.flush()]
    replies.end(opening, said, is_whole=is_whole, is_first=True)
    return said


async def found(replies: Replies, asked: Conversation) -> dict[int, tuple[list[int], int]]:
    spliced = await replies.find(ROOT, asked, list(turn_keys(ROOT, asked)))
    return {at: (list(hit.ids), hit.num_chars) for at, hit in spliced.items()}


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode_text(text, scope="")]


@given(data=st.data(), ids=st.lists(st.integers(0, 257), min_size=1, max_size=40))
def test_what_fits_decodes_to_a_beginning_of_the_text(data: st.DataObject, ids: list[int]) -> None:
    tokenizer = TOKENIZER
    replies = make(tokenizer, DictShelf())
    stream = TextStream(tokenizer.decode, StopStrings(()), tokenizer.code_point_endings)
    text = stream.decode(ids) + stream.flush()
    cut = text[: data.draw(st.integers(0, len(text)))]
    fit = replies.fitting(ids, cut)
    if fit is None:
        return
    assert list(fit.ids) == ids[: len(fit.ids)]
    assert cut[: fit.num_chars] == tokenizer.decode(fit.ids)


@given(text=st.text(min_size=1, max_size=30), more=st.text(max_size=10))
def test_valid_text_fits_whole_and_any_beginning_to_the_character(text: str, more: str) -> None:
    tokenizer = TOKENIZER
    replies = make(tokenizer, DictShelf())
    ids = ids_of(tokenizer, text + more)
    fit = replies.fitting(ids, text)
    assert fit is not None and fit.num_chars == len(text) and list(fit.ids) == ids_of(tokenizer, text)


TOKENIZER = byte_tokenizer()


async def test_the_shelf_has_it_for_a_replica_that_never_said_it(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    ids = [200, 10, 65, 300 - 65]
    said = say(make(tokenizer, shelf), tokenizer, conversation("Hi?"), ids)
    asked = conversation("Hi?", said.text, "And?")
    other = make(tokenizer, shelf)
    assert await found(other, asked) == {1: (ids, len(said.text))}
    assert await found(other, asked) == {1: (ids, len(said.text))}
    assert shelf.num_fetches == 1
    assert await found(make(tokenizer, DictShelf()), asked) == {}


async def test_what_came_before_is_part_of_the_key(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    replies = make(tokenizer, shelf)
    said = say(replies, tokenizer, conversation("Hi?"), [200, 65])
    assert await found(replies, conversation("Hi!", said.text, "And?")) == {}
    tools_changed = canonical([Message("user", "Hi?"), Message("assistant", said.text)], ())
    tools_changed.schemas.append({"type": "function", "function": {"name": "f"}})
    assert await found(replies, tools_changed) == {}


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02",
        msgpack.packb([2, b"\0\0\0\0"]),
        msgpack.packb([1, b"odd"]),
        msgpack.packb([1, "text"]),
        msgpack.packb(7),
        msgpack.packb([1, [-1]]),
        msgpack.packb([1, [200]]),
        msgpack.packb([1, (200).to_bytes(4, "little") + (4_000_000_000).to_bytes(4, "little")]),
        msgpack.packb([1, (65).to_bytes(4, "little")]),  # says something else
        msgpack.packb([1, (70_000).to_bytes(4, "little")]),  # no token of ours
        msgpack.packb([1, (257).to_bytes(4, "little") + (200).to_bytes(4, "little")]),  # a control token
    ],
)
async def test_a_record_that_is_not_believed(tokenizer: Tokenizer, shelf: DictShelf, record: bytes) -> None:
    asked = conversation("Hi?", tokenizer.decode([200]), "And?")
    shelf.records = dict.fromkeys(turn_keys(ROOT, asked), record)
    assert await found(make(tokenizer, shelf), asked) == {}


async def test_control_tokens_that_the_model_wrote_stay_in_this_process(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    replies = make(tokenizer, shelf)
    said = say(replies, tokenizer, conversation("Hi?"), [65, 257, 66])
    assert await found(replies, conversation("Hi?", said.text)) == {1: ([65, 257, 66], 2)}
    assert not shelf.records


async def test_the_best_of_what_was_cut_off_and_what_still_runs(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    replies = make(tokenizer, shelf)
    asked = conversation("Hi?")
    say(replies, tokenizer, asked, ids_of(tokenizer, "A cut reply"), is_whole=False)
    *_, key = turn_keys(ROOT, asked)
    opening = Opening(ROOT, key, asked, None, [1], HashChain(ROOT, 4), 0)
    (running,) = replies.begin(opening, 1)
    running.ids += ids_of(tokenizer, "A running")
    assert await found(replies, conversation("Hi?", "A cut")) == {1: (ids_of(tokenizer, "A cut"), 5)}
    assert await found(replies, conversation("Hi?", "A run")) == {1: (ids_of(tokenizer, "A run"), 5)}
    replies.end(opening, running, is_whole=False, is_first=True)


def test_a_transcript_is_found_by_the_whole_conversation_only(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    replies = make(tokenizer, shelf)
    said = say(replies, tokenizer, conversation("Hi?"), ids_of(tokenizer, "Hello."))
    kept = replies.transcript(ROOT, conversation("Hi?", said.text, "And?"))
    assert kept is not None
    assert list(kept.known.ids) == [1, 2, 3, *said.ids]
    chain = HashChain(ROOT, 4)
    chain.extend([1, 2, 3, *said.ids])
    assert (kept.chain.hashes, kept.chain.num_tokens) == (chain.hashes, 3 + len(said.ids))
    assert replies.transcript(ROOT, conversation("Hi!", said.text, "And?")) is None
    assert replies.transcript(BlockHash(b"x" * 16), conversation("Hi?", said.text, "And?")) is None
    edited = conversation("Hi?", said.text, "And?")
    edited.schemas.append({"type": "function"})
    assert replies.transcript(ROOT, edited) is None


@pytest.mark.parametrize(("then", "is_known"), [(True, True), (1, False), (False, False)])
def test_options_that_are_equal_but_written_otherwise_are_others(
    tokenizer: Tokenizer, shelf: DictShelf, then: object, is_known: bool
) -> None:
    replies = make(tokenizer, shelf)
    hi, more = Message("user", "Hi?"), Message("user", "And?")
    said = say(replies, tokenizer, canonical([hi], (), options=(("thinks", True),)), ids_of(tokenizer, "Hello."))
    messages = hi, Message("assistant", said.text), more
    before = replies.beginning(ROOT, messages)
    assert before is not None
    assert (continued(before, messages, (), (("thinks", then),)) is not None) == is_known
    asked = canonical(messages, (), options=(("thinks", then),))
    assert (replies.transcript(ROOT, asked) is not None) == is_known


def test_a_beginning_is_found_under_its_own_root_by_the_messages_as_they_came(
    tokenizer: Tokenizer, shelf: DictShelf
) -> None:
    replies = make(tokenizer, shelf)
    messages = [Message("user", "Hi?"), Message("developer", "Be"), Message("system", "kind"), Message("user", "So?")]
    said = say(replies, tokenizer, canonical(messages, ()), ids_of(tokenizer, "Hello."))
    messages += [Message("assistant", said.text), Message("user", "And?")]
    before = replies.beginning(ROOT, messages)
    assert before is not None and before.messages == tuple(messages[:4])
    assert replies.beginning(BlockHash(b"x" * 16), messages) is None
    assert replies.beginning(ROOT, messages[1:]) is None
    assert replies.beginning(ROOT, messages[:4]) is None


def test_the_size_of_a_transcript_is_that_of_all_its_turns(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    chain = HashChain(ROOT, 4)
    call = ToolCall("a", "f" * 50, "{}")
    contents = ["Hi?", "Hello.", "And more?" * 20, "", "18 degrees", "Warm.", "So?"]
    roles = ["user", "assistant", "user", "assistant", "tool", "assistant", "user"]
    messages = [Message(role, content) for role, content in zip(roles, contents, strict=True)]  # type: ignore[arg-type]
    messages[3:5] = [Message("assistant", tool_calls=(call,)), Message("tool", "18 degrees", "a")]
    transcripts: list[Transcript] = []
    for end in (1, 3, 7):
        asked = canonical(messages[:end], ())
        key = TurnKey(bytes(16))
        opening = Opening(ROOT, key, asked, "prompt", array("I"), chain.fork(), 0)
        whole = Transcript.of(opening, key, Turn("assistant", "x"), Spliced([1], 1))
        opening = replace(opening, chain=chain.fork(), continues=transcripts[-1] if transcripts else None)
        grown = Transcript.of(opening, key, Turn("assistant", "x"), Spliced([1], 1))
        assert grown is not None and whole is not None and grown.num_bytes == whole.num_bytes
        assert not transcripts or grown.num_bytes > transcripts[-1].num_bytes
        transcripts.append(grown)


async def test_lenient_takes_a_reply_whose_ends_were_stripped(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    ids = ids_of(tokenizer, " Hello.\n")
    for is_lenient in (False, True):
        replies = make(tokenizer, DictShelf(), is_lenient=is_lenient)
        say(replies, tokenizer, conversation("Hi?"), ids)
        asked = replies.seen(conversation("Hi?", "Hello.", "And?"))
        assert await found(replies, asked) == ({1: (ids, 6)} if is_lenient else {})
        assert (replies.transcript(ROOT, asked) is not None) == is_lenient


def test_turns_with_equal_joins_have_different_keys() -> None:
    texts = [Turn("user", "ab", "c"), Turn("user", "a", "bc"), Turn("user", "abc"), Turn("usera", "bc")]
    keys = [list(turn_keys(ROOT, Conversation((turn,), (0,), [])))[1] for turn in texts]
    assert len(set(keys)) == len(texts)


def test_what_no_token_of_the_reply_says_is_encoded_next_time(shelf: DictShelf) -> None:
    """A stop string inside a token: the client has "Hello ", whose blank is part of the token " world"."""
    words = {0: "Hello", 1: " world"}
    replies = Replies(lambda ids: "".join(words[i] for i in ids), frozenset(), shelf, vocab_size=2, drops=Drops())
    asked = conversation("Hi?")
    *_, key = turn_keys(ROOT, asked)
    opening = Opening(ROOT, key, asked, "prompt ", [1], HashChain(ROOT, 4), 0)
    opening.chain.extend([1])
    (said,) = replies.begin(opening, 1)
    said.ids += [0, 1]
    said.pieces.append("Hello ")
    replies.end(opening, said, is_whole=True, is_first=True)
    kept = replies.transcript(ROOT, conversation("Hi?", "Hello ", "And?"))
    assert kept is not None and list(kept.known.ids) == [1, 0] and kept.known.num_reply_chars == len("Hello")


def test_lenient_keeps_what_else_is_known_of_the_conversation(tokenizer: Tokenizer, shelf: DictShelf) -> None:
    part = Part(0, 2, Breakpoint())
    asked = canonical([Message("system", "Hi", parts=(part,)), Message("user", "?"), Message("assistant", " a ")], ())
    seen = make(tokenizer, shelf, is_lenient=True).seen(asked)
    assert seen.breakpoints == asked.breakpoints != ()
    assert [turn.content for turn in seen.turns] == ["Hi", "?", "a"]
