"""LogprobStream: every token's score is let out with the text it explains, and none of a stop string's."""

from pathlib import Path

import pytest

from sessions.detokenizer import StopStrings, TextStream
from sessions.engine.request import TokenScore
from sessions.logprobs import LogprobStream, spelt, token_logprob
from sessions.reports import TokenLogprob
from sessions.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Tokenizer:
    return Tokenizer.load(base_folder)


class Run:
    """One choice, token by token: (text let out, bytes let out) after each."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self.stream = TextStream(tokenizer.decode, StopStrings(stop), tokenizer.code_point_endings)
        self.logprobs = LogprobStream(tokenizer.token_bytes)
        self.text, self.tokens = "", [TokenLogprob("", b"", 0.0)][:0]

    def add(self, token_id: int) -> None:
        self.text += self.stream.decode((token_id,))
        score = TokenScore(token_id, -1.0)
        self.logprobs.add(score, num_settled=self.stream.num_settled, is_settled=self.stream.is_settled)
        if not self.stream.stopped:
            self.tokens += self.logprobs.take(self.stream.num_shown)

    def finish(self) -> None:
        self.text += self.stream.flush()
        self.tokens += self.logprobs.finish(self.stream.num_shown, is_cut=self.stream.stopped)

    @property
    def shown(self) -> bytes:
        return b"".join(token.bytes or b"" for token in self.tokens)


def byte_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per byte."""
    by_byte = {tokenizer.token_bytes.of(token_id): token_id for token_id in reversed(range(tokenizer.vocab_size))}
    return [by_byte[bytes([byte])] for byte in text.encode()]


@pytest.mark.parametrize("text", ["plain", "é東😀!", "a😀"])
def test_bytes_go_out_with_their_text(tokenizer: Tokenizer, text: str) -> None:
    run = Run(tokenizer)
    for token_id in byte_ids(tokenizer, text):
        run.add(token_id)
        assert run.shown.decode() == run.text
    run.finish()
    assert run.shown.decode() == run.text == text


def test_what_may_begin_a_stop_string_is_held_back_with_its_text(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, ("END",))
    for token_id in byte_ids(tokenizer, "xENx"):
        run.add(token_id)
        assert run.shown.decode() == run.text
    run.finish()
    assert run.shown == b"xENx"


def test_tokens_of_a_stop_string_are_not_shown(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, ("END",))
    for token_id in byte_ids(tokenizer, "xyEND"):
        run.add(token_id)
    run.finish()
    assert (run.text, run.shown) == ("xy", b"xy")


def test_a_token_that_a_stop_string_cuts_in_two_is_shown_whole(tokenizer: Tokenizer) -> None:
    (token_id,) = tokenizer.encode_text("the", scope="")
    run = Run(tokenizer, ("e",))
    run.add(token_id)
    run.finish()
    assert (run.text, run.shown) == ("th", b"the")


def test_bytes_that_never_were_a_code_point_do_not_drag_on_what_follows(tokenizer: Tokenizer) -> None:
    (lead, *_), (letter,) = byte_ids(tokenizer, "é"), byte_ids(tokenizer, "A")
    run = Run(tokenizer, ("A",))
    run.add(lead)
    run.add(letter)
    run.finish()
    assert (run.text, run.shown) == ("\N{REPLACEMENT CHARACTER}", "é".encode()[:1])


def test_a_code_point_that_is_cut_short_keeps_its_tokens(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer)
    for token_id in byte_ids(tokenizer, "a😀")[:-1]:
        run.add(token_id)
    run.finish()
    assert (run.text, run.shown) == ("a", "a😀".encode()[:-1])
    assert run.tokens[1].text == r"\xf0"


def test_alternatives_are_spelt_alike(tokenizer: Tokenizer) -> None:
    first, second = byte_ids(tokenizer, "ab")
    made = token_logprob(tokenizer.token_bytes, TokenScore(first, -0.5, ((first, -0.5), (second, -2.0))))
    assert made == TokenLogprob("a", b"a", -0.5, (TokenLogprob("a", b"a", -0.5), TokenLogprob("b", b"b", -2.0)))
    assert spelt("é".encode()[:1]) == r"\xc3"
