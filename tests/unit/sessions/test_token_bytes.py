"""TokenBytes: the bytes of a reply's tokens, one after another, are the bytes of its text, whatever the tokenizer."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.tokenizer import Tokenizer

FOLDERS = ["chatml_folder", "mistral_folder", "plain_folder", "phi_folder", "smollm2_folder", "base_folder"]
TEXTS = ["hello world", "naïve café, 東京 😀", " \n\t  x", "    four", "\U0001f469\u200d\U0001f680", "Ġ▁<0x41>"]


@pytest.fixture(params=FOLDERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    folder: Path = request.getfixturevalue(request.param)
    return Tokenizer.load(folder)


def joined(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    written = [tokenizer.token_bytes.of(token_id, opens=index == 0) for index, token_id in enumerate(ids)]
    return b"".join(piece for piece in written if piece is not None)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text, scope="")
    assert joined(tokenizer, ids) == tokenizer.decode(ids).encode()


def test_a_special_token_writes_nothing_and_has_a_name(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    (end,) = tokenizer.eos_token_ids
    assert tokenizer.token_bytes.of(end) is None
    assert tokenizer.token_bytes.name(end) == "<|im_end|>"


def test_a_token_may_be_a_piece_of_a_code_point(mistral_folder: Path, base_folder: Path) -> None:
    for folder in (mistral_folder, base_folder):
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode_text("🦜", scope="")
        assert len(ids) > 1
        assert b"".join(tokenizer.token_bytes.of(token_id) or b"" for token_id in ids).decode() == "🦜"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_ids_that_are_text_join_to_it(shared: tuple[Tokenizer, ...], data: st.DataObject) -> None:
    tokenizer = data.draw(st.sampled_from(shared))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=8))
    whole = joined(tokenizer, ids)
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return
    assert tokenizer.decode(ids) == text


@pytest.fixture(scope="session")
def shared(chatml_folder: Path, smollm2_folder: Path) -> tuple[Tokenizer, ...]:
    return Tokenizer.load(chatml_folder), Tokenizer.load(smollm2_folder)
