"""Detokenizer, StopChecker, TextStream: any chunking gives the whole text, cut at the first complete stop."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sessions.detokenizer import Detokenizer, StopChecker, StopStrings, TextStream
from sessions.tokenizer import Tokenizer

FOLDERS = ["chatml_folder", "mistral_folder", pytest.param("smollm2_folder", marks=pytest.mark.model)]
TEXT = "The 東京 naïve 😀👩‍👩‍👧 x  \n\n end\ufffd"

ids_lists = st.lists(st.integers(0, 460), max_size=40)
few = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="session", params=FOLDERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.load(folder)


def one_byte(ids: Sequence[int]) -> str:
    """A tokenizer whose ids are the bytes of UTF-8."""
    return bytes(ids).decode("utf-8", "replace")


def whole_characters(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Byte-fallback tokens turned into those of an é. A run of them that is not UTF-8 decodes to replacement
    characters throughout, even where its beginning was: no stream can know that in advance.
    """
    two_bytes = [tokenizer._backend.token_to_id(text) or 0 for text in ("<0xC3>", "<0xA9>")]
    spelt = [
        two_bytes if (tokenizer._backend.id_to_token(token_id) or "").startswith("<0x") else [token_id]
        for token_id in ids
    ]
    return [token_id for part in spelt for token_id in part]


def cut_at_first_complete_stop(text: str, stops: Sequence[str]) -> str:
    for end in range(1, len(text) + 1):
        matched = [len(stop) for stop in stops if stop and text[:end].endswith(stop)]
        if matched:
            return text[: end - max(matched)]
    return text


@few
@given(ids=ids_lists)
def test_pieces_join_to_the_whole_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    ids = whole_characters(tokenizer, ids)
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.decode(token_id) for token_id in ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)


@given(st.text())
def test_no_piece_splits_a_code_point(text: str) -> None:
    detokenizer = Detokenizer(one_byte)
    encoded = text.encode("utf-8", "replace")
    pieces = [detokenizer.decode(byte) for byte in encoded]
    assert "".join(pieces) + detokenizer.flush() == encoded.decode()
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_text_leaves_as_soon_as_it_is_whole() -> None:
    detokenizer = Detokenizer(one_byte)
    assert [detokenizer.decode(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]
    assert detokenizer.flush() == ""


@given(st.lists(st.integers(0, 255), max_size=60))
@example([*[0x80] * 13, *"😀".encode()])
def test_bytes_that_are_not_utf8_read_as_replacement_characters(garbage: list[int]) -> None:
    detokenizer = Detokenizer(one_byte)
    text = "".join(detokenizer.decode(byte) for byte in garbage) + detokenizer.flush()
    settled = text.replace("\ufffd", "")
    assert settled == one_byte(garbage).replace("\ufffd", "")
    assert ("\ufffd" in text) == ("\ufffd" in one_byte(garbage))


def test_a_truncated_code_point_is_one_replacement_character_at_the_end() -> None:
    detokenizer = Detokenizer(one_byte)
    pieces = [detokenizer.decode(byte) for byte in "é😀".encode()[:-1]]
    assert "".join(pieces) == "é"
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_code_point_cut_short_by_the_limit_is_not_shown(tokenizer: Tokenizer) -> None:
    """Byte for byte: `max_tokens` may end a reply inside an emoji."""
    ids = tokenizer._backend.encode("ok 🦄", add_special_tokens=False).ids
    shown = ""
    for end in range(1, len(ids) + 1):
        detokenizer = Detokenizer(tokenizer.decode, tokenizer.code_point_endings)
        shown = "".join(map(detokenizer.decode, ids[:end])) + detokenizer.flush()
        assert "\ufffd" not in shown
        assert "ok 🦄".startswith(shown.lstrip())
    assert shown.lstrip() == "ok 🦄"


def test_bytes_that_never_will_be_a_code_point_are_shown_at_the_end() -> None:
    detokenizer = Detokenizer(one_byte, [[0x80], [0x80, 0x80], [0x80, 0x80, 0x80]])
    text = "".join(detokenizer.decode(byte) for byte in b"a\xff") + detokenizer.flush()
    assert text == "a\ufffd"


def test_a_text_of_special_tokens_or_of_garbage_keeps_the_window_small() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return one_byte([token_id for token_id in ids if token_id < 256])

    for stream in ([300] * 500, [97, *[300] * 500], [0x80] * 500, [0xE6, 0x9D] * 250):
        detokenizer = Detokenizer(decode)
        text = "".join(map(detokenizer.decode, stream)) + detokenizer.flush()
        assert text.replace("\ufffd", "") == ("a" if 97 in stream else "")
    assert longest <= 32


def test_special_tokens_do_not_eat_the_space_after_them(mistral_folder: Path) -> None:
    tokenizer = Tokenizer.load(mistral_folder)
    space, end, letter = (tokenizer._backend.token_to_id(text) or 0 for text in ("▁", "</s>", "x"))
    streams = [[letter, end, space, letter], [space, space, letter], [end, end, space, letter]]
    for ids in (*streams, [*[end] * 40, letter], [letter, *[end] * 40, space, letter]):
        detokenizer = Detokenizer(tokenizer.decode)
        assert "".join(map(detokenizer.decode, ids)) + detokenizer.flush() == tokenizer.decode(ids)


@given(
    text=st.text(alphabet="aab<", max_size=30),
    stops=st.lists(st.text(alphabet="ab<", max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 30)),
)
def test_any_chunking_is_cut_at_the_first_complete_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    checker = StopChecker(StopStrings(stops))
    expected = cut_at_first_complete_stop(text, stops)
    output = ""
    for start, end in pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]):
        output += checker.decode(text[start:end])
        assert expected.startswith(output)
    assert checker.stopped == (expected != text)
    assert output + checker.flush() == expected


@pytest.mark.parametrize(
    ("stops", "pieces", "outputs", "rest"),
    [
        (("STOP",), ["a", "bS", "TO", "x"], ["a", "b", "", "STOx"], ""),
        (("STOP",), ["abSTO"], ["ab"], "STO"),
        (("STOP",), ["abSTOPcd", "e"], ["ab", ""], ""),
        (("abcd", "bc"), ["abc", "d"], ["a", ""], ""),
        (("bc", "abc"), ["abc"], [""], ""),
        (("aab",), ["aaa", "b"], ["a", ""], ""),
        (("\n\n",), ["x\n", "y\n\n"], ["x", "\ny"], ""),
        ((), ["x", "y"], ["x", "y"], ""),
        (("",), ["x"], ["x"], ""),
    ],
)
def test_what_leaves_when(stops: tuple[str, ...], pieces: list[str], outputs: list[str], rest: str) -> None:
    checker = StopChecker(StopStrings(stops))
    assert [checker.decode(piece) for piece in pieces] == outputs
    assert checker.flush() == rest


def test_a_stop_across_tokens_counts_the_tokens_used() -> None:
    stream = TextStream(one_byte, StopStrings(("é!",)))
    assert stream.decode(list("abé!".encode())[:3]) == "ab"
    assert stream.decode(list(b"\xa9!never seen")) == ""
    assert (stream.stopped, stream.num_tokens_used) == (True, 5)
    assert (stream.decode([97]), stream.flush(), stream.num_tokens_used) == ("", "", 5)


def test_flush_can_complete_a_stop() -> None:
    stream = TextStream(one_byte, StopStrings(("a\ufffd",)))
    assert stream.decode([120, 97, 0xE6]) == "x"
    assert (stream.flush(), stream.stopped) == ("", True)


@few
@given(ids=ids_lists, stop=st.lists(st.sampled_from(["the", " ", "a", "\ufffd", "東", "x y"]), max_size=3))
def test_a_stream_is_the_whole_text_cut(tokenizer: Tokenizer, ids: list[int], stop: list[str]) -> None:
    ids = whole_characters(tokenizer, ids)
    stream = TextStream(tokenizer.decode, StopStrings(tuple(stop)))
    text = stream.decode(ids[:7]) + stream.decode(ids[7:]) + stream.flush()
    assert text == cut_at_first_complete_stop(tokenizer.decode(ids), stop)


def test_choices_share_their_stop_strings_and_stop_apart() -> None:
    stops = StopStrings(("ab",))
    one, other = TextStream(one_byte, stops), TextStream(one_byte, stops)
    assert (one.decode(b"xa"), other.decode(b"b")) == ("x", "b")
    assert (one.decode(b"b"), one.stopped, other.stopped) == ("", True, False)


@pytest.mark.parametrize("last", ["\u0800", "\ud7ff", "東", "\U00010000", "😀", "\U0010ffff", "\ufffd"])
def test_every_beginning_of_a_code_point_is_dropped(last: str) -> None:
    endings = [b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80"]
    encoded = last.encode()
    for length in range(1, len(encoded)):
        for before in ("", "é", "a\ufffd"):
            detokenizer = Detokenizer(one_byte, endings)
            pieces = [detokenizer.decode(byte) for byte in before.encode() + encoded[:length]]
            assert "".join(pieces) + detokenizer.flush() == before


@pytest.mark.model
def test_a_token_costs_the_same_however_long_the_text(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_folder)
    ids = tokenizer._backend.encode(TEXT * 400, add_special_tokens=False).ids
    most = 0

    def decode(some_ids: Sequence[int]) -> str:
        nonlocal most
        most = max(most, len(some_ids))
        return tokenizer.decode(some_ids)

    stream = TextStream(decode, StopStrings(("never",)))
    assert stream.decode(ids) + stream.flush() == TEXT * 400
    assert most <= 24
