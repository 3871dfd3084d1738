"""Tokenizer: transformers' ids for ordinary conversations, no control token from text, splices, the cache."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from sessions import control_tokens, plain_encoder
from sessions.chat_template import TEMPLATE_DATE
from sessions.errors import ContextLengthExceeded, InvalidRequest, ModelRefused
from sessions.plain_encoder import TooManyTokensError
from sessions.tokenizer import Tokenizer
from sessions.types import Message, TokenId
from tests.rendering import render

FOLDERS = [
    "chatml_folder",
    "mistral_folder",
    "plain_folder",
    "phi_folder",
    pytest.param("smollm2_folder", marks=pytest.mark.model),
]
ORDINARY = [
    "hello",
    "the quick",
    " ",
    "  ",
    "\n",
    "\n\n",
    "    ",
    "\t",
    "é",
    "e\u0301",
    "東京",
    "😀",
    "x1 = [1, 2]",
    "1234",
]
SHARP = ["<b>", "<", ">", "[", "]", "|", "</p>", "<|", "|>", "a_b", "▁", "\u200b", "\ue000", "don't"]
CONTROL = [
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
    "<|end|>",
    "<|mask|>",
    "<think>",
    "quick<x>",
    "<unk>",
]

ordinary = st.lists(st.sampled_from([*ORDINARY, *SHARP]), max_size=10).map("".join)
hostile = st.lists(st.sampled_from([*ORDINARY, *SHARP, *CONTROL, *(text[:-1] for text in CONTROL)]), max_size=8)
few = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="session", params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def conversation(contents: list[str]) -> list[Message]:
    roles: list[Any] = ["system", *["user", "assistant"] * len(contents)]
    return [Message(role, content) for role, content in zip(roles, contents, strict=False)]


@few
@given(contents=st.lists(ordinary, min_size=2, max_size=7), generate=st.booleans())
def test_ordinary_conversations_get_the_ids_of_transformers(
    tokenizer: Tokenizer, theirs: Any, contents: list[str], generate: bool
) -> None:
    messages = conversation(contents)
    expected = theirs.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        tokenize=True,
        add_generation_prompt=generate,
        return_dict=False,
    )
    prompt = render(messages, [], tokenizer.template, add_generation_prompt=generate)
    assert list(tokenizer.encode(prompt)) == expected


@few
@given(contents=st.lists(hostile.map("".join), min_size=2, max_size=5))
def test_text_never_becomes_a_control_token(tokenizer: Tokenizer, contents: list[str]) -> None:
    control_ids = tokenizer.template.control_tokens.ids
    messages = conversation(contents)
    innocent = conversation(["x"] * len(contents))
    written = [token for token in tokenizer.encode(render(messages, [], tokenizer.template)) if token in control_ids]
    expected = tokenizer.encode(render(innocent, [], tokenizer.template))
    unknown = tokenizer.template.control_tokens.by_text.get("<unk>")
    assert [token for token in written if not unknown or token != unknown.id] == [
        token for token in expected if token in control_ids
    ]


@few
@given(contents=st.lists(ordinary, min_size=3, max_size=7))
def test_ids_are_append_stable(tokenizer: Tokenizer, contents: list[str]) -> None:
    messages = conversation(contents)
    whole = tokenizer.encode(render(messages, [], tokenizer.template, add_generation_prompt=False))
    for length in range(1, len(messages)):
        part = render(messages[:length], [], tokenizer.template, add_generation_prompt=False)
        closed = part.segments
        while closed and closed[-1].control_id is None:  # text at the very end may go on, and then merge with it
            closed = closed[:-1]
        ids = tokenizer.encode(replace(part, segments=closed))
        assert whole[: len(ids)] == ids


def test_spliced_ids_stand_where_the_content_would(tokenizer: Tokenizer) -> None:
    question = [Message("system", "be"), Message("user", "hello the quick")]
    reply = [TokenId(token) for token in (77, 78) * 3]
    messages = [*question, Message("assistant", "quick fox"), Message("user", "and then")]
    prompt = render(messages, [], tokenizer.template)
    plain = tokenizer.encode(prompt)
    spliced = tokenizer.encode(prompt, spliced={2: reply})
    (start,) = [at for at in range(len(spliced)) if list(spliced[at : at + len(reply)]) == reply]
    assert spliced[:start] == plain[:start]
    assert spliced[start + len(reply) :] == plain[len(plain) - (len(spliced) - start - len(reply)) :]
    assert tokenizer.encode(prompt, spliced={}) == plain == tokenizer.encode(prompt, spliced={9: reply})


def test_a_spliced_reply_continues_its_own_prompt(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    question = [Message("user", "hello")]
    asked = tokenizer.encode(render(question, [], tokenizer.template))
    reply = [TokenId(token) for token in (70, 71, 72, 5)]  # no tokenizer would write text in these
    answered = [*question, Message("assistant", "whatever"), Message("user", "go on")]
    continued = tokenizer.encode(render(answered, [], tokenizer.template), spliced={1: reply})
    end = tokenizer.template.control_tokens.by_text["<|im_end|>"].id
    assert list(continued[: len(asked) + 5]) == [*asked, *reply, end]


def test_rstrip_and_single_word_flags(phi_folder: Path) -> None:
    tokens = Tokenizer.load(phi_folder).template.control_tokens
    found = [(m.token.text, m.start, m.end) for m in tokens.find("a  <|mask|>b <|end|> \n <|end|>c<|w|>d <|w|>")]
    assert found == [("<|mask|>", 1, 11), ("<|end|>", 13, 23), ("<|end|>", 23, 30), ("<|w|>", 38, 43)]


@few
@given(texts=st.lists(hostile.map("".join), min_size=1, max_size=3), window=st.integers(1, 12))
def test_a_control_token_across_two_windows_is_seen(tokenizer: Tokenizer, texts: list[str], window: int) -> None:
    messages = conversation(texts)
    at_once = render(messages, [], tokenizer.template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_tokens, "_WINDOW", window)
        assert render(messages, [], tokenizer.template) == at_once


def test_a_control_tokens_text_is_encoded_as_any_other_text(chatml_folder: Path) -> None:
    tokenizer, theirs = Tokenizer.load(chatml_folder), AutoTokenizer.from_pretrained(chatml_folder)
    plain = theirs.encode("user\na quick<x><|im_end|>b", add_special_tokens=False, split_special_tokens=True)
    ids = tokenizer.encode(render([Message("user", "a quick<x><|im_end|>b")], [], tokenizer.template))
    assert list(ids[1 : 1 + len(plain)]) == plain


def test_a_vocabulary_that_holds_a_control_token_as_a_piece(unigram_folder: Path) -> None:
    tokenizer = Tokenizer.load(unigram_folder)
    end = tokenizer.template.control_tokens.by_text["</s>"].id
    word = tokenizer._backend.token_to_id("ok")
    assert tokenizer.encode(render([Message("user", "ok</s>ok")], [], tokenizer.template)).count(word or 0) == 2
    for text in ("ok</s>ok", "</s></s>", "ok\uff1c/s\uff1eok", "\ufffd"):
        assert tokenizer.encode(render([Message("user", text)], [], tokenizer.template)).count(end) == 1


def test_a_base_model_gets_the_default_template(base_folder: Path) -> None:
    tokenizer = Tokenizer.load(base_folder)
    prompt = render([Message("user", "hi")], [], tokenizer.template)
    assert prompt.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer.encode(prompt)) == prompt.text
    assert tokenizer.eos_token_ids == frozenset()


@pytest.mark.parametrize(("configured", "extra"), [(7, {7}), ([7, 8], {7, 8}), (None, set())])
def test_eos_is_the_union(chatml_folder: Path, tmp_path: Path, configured: Any, extra: set[int]) -> None:
    shutil.copytree(chatml_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
    tokenizer = Tokenizer.load(tmp_path)
    end = tokenizer.template.control_tokens.by_text["<|im_end|>"].id
    assert tokenizer.eos_token_ids == {end, *extra}


def test_the_date_in_a_template_is_pinned_and_in_the_digest(chatml_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chatml_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert render([Message("user", "!")], [], tokenizer.template).text == "26 Jul 2024!"
    other = Tokenizer.load(tmp_path, today=TEMPLATE_DATE.replace(year=2025))
    assert render([Message("user", "!")], [], other.template).text == "26 Jul 2025!"
    assert other.template_digest != tokenizer.template_digest
    assert other.digest == tokenizer.digest == Tokenizer.load(chatml_folder).digest


def test_the_template_is_sandboxed(chatml_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chatml_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(InvalidRequest) as raised:
        render([Message("user", "!")], [], tokenizer.template)
    assert raised.value.param == "messages"


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelRefused, match="tokenizer"):
        Tokenizer.load(tmp_path)


def test_the_cache_is_bounded_used_and_kept_apart(chatml_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    encoder = tokenizer._encoder
    encode = encoder.encode
    first = encode("hello there", first=True, scope="a")
    assert encode("hello there", first=True, scope="a") is first
    assert encode("hello there", first=True, scope="b") is not first
    assert encode("hello there", first=False, scope="a") is not first
    monkeypatch.setattr(plain_encoder, "CACHE_BYTES", 20_000)
    for number in range(200):
        encode(f"text {number} " * 10, first=False, scope="a")
        assert encoder._cached_bytes <= 20_000
    assert 5 < len(encoder._cache) < 60
    assert encode("hello there", first=True, scope="a") is not first
    encode("x" * 100_000, first=False, scope="a")
    assert (len(encoder._cache), encoder._cached_bytes) == (0, 0)


def test_threads_that_encode_the_same_texts_keep_the_cache_in_order(
    chatml_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that missed the same key counted its bytes twice, until the cache threw out more than it had."""
    encoder = Tokenizer.load(chatml_folder)._encoder
    monkeypatch.setattr(plain_encoder, "CACHE_BYTES", 200_000)
    texts = [f"{number} " * 6000 for number in range(4)]
    start = threading.Barrier(4)

    def encode_all(_: int) -> None:
        for text in texts * 3:
            start.wait(20)
            encoder.encode(text, first=False, scope="a")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(encode_all, range(4)))
    held = sum(plain_encoder._entry_bytes(text, ids) for (_, _, text), ids in encoder._cache.items())
    assert encoder._cached_bytes == held <= 200_000


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(
    chatml_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    prompt = render([Message("user", "word " * 200_000)], [], tokenizer.template)
    encoded = plain_encoder._encoded

    def short_ones(backend: Any, pieces: list[str]) -> list[int]:
        assert max(map(len, pieces)) < 1000, "it was encoded"
        return encoded(backend, pieces)

    monkeypatch.setattr(plain_encoder, "_encoded", short_ones)
    with pytest.raises(ContextLengthExceeded):
        tokenizer.encode(prompt, max_model_len=1024)


def test_a_long_text_is_encoded_as_a_short_one_and_lets_other_threads_run(chatml_folder: Path) -> None:
    tokenizer = Tokenizer.load(chatml_folder)
    text = "the quick brown fox jumps over 東京 😀 " * 10_000
    longest_wait_s = 0.0
    ids: list[TokenId] = []
    is_done = threading.Event()

    def encode() -> None:
        ids.extend(tokenizer.encode_text(text, scope=""))
        is_done.set()

    thread = threading.Thread(target=encode)
    began = before = time.monotonic()
    thread.start()
    while not is_done.wait(0.001):
        longest_wait_s = max(longest_wait_s, time.monotonic() - before)
        before = time.monotonic()
    took_s = time.monotonic() - began
    thread.join()
    assert ids == tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert longest_wait_s < took_s / 2


@few
@given(
    text=st.one_of(
        st.text(max_size=300), ordinary, st.sampled_from([" " * 300, "the quick brown fox" * 20, "\x04" * 300])
    )
)
def test_no_text_has_fewer_tokens_than_its_length_makes_certain(tokenizer: Tokenizer, text: str) -> None:
    num_tokens = len(tokenizer.encode_text(text, scope=""))
    with suppress(TooManyTokensError):
        assert len(tokenizer._encoder.encode(text, first=False, scope="", room=num_tokens + 1)) == num_tokens
        return
    pytest.fail("refused although it fits")


def test_encoding_stops_where_the_context_is_full(tokenizer: Tokenizer) -> None:
    messages = conversation([f"hello {number}" for number in range(30)])
    prompt = render(messages, [], tokenizer.template)
    ids = tokenizer.encode(prompt)
    assert tokenizer.encode(prompt, max_model_len=len(ids) + 1) == ids
    for max_model_len in (1, len(ids) // 2, len(ids)):
        with pytest.raises(ContextLengthExceeded) as refusal:
            tokenizer.encode(prompt, max_model_len=max_model_len)
        assert max_model_len <= refusal.value.num_prompt_tokens <= len(ids)
    assert "at least" not in refusal.value.message
    assert refusal.value.num_prompt_tokens == len(ids)


def test_a_text_that_has_to_be_cut_small_stops_too(unigram_folder: Path) -> None:
    tokenizer = Tokenizer.load(unigram_folder)
    prompt = render([Message("user", "ok</s>" * 20_000)], [], tokenizer.template)
    with pytest.raises(ContextLengthExceeded, match="at least") as refusal:
        tokenizer.encode(prompt, max_model_len=100)
    assert refusal.value.num_prompt_tokens < 10_000 < len(tokenizer.encode(prompt))


def test_a_saved_truncation_and_padding_do_not_apply(chatml_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(chatml_folder, tmp_path, dirs_exist_ok=True)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "the quick brown fox jumps over the lazy dog"
    expected = Tokenizer.load(chatml_folder).encode_text(text, scope="")
    assert Tokenizer.load(tmp_path).encode_text(text, scope="") == expected


@pytest.mark.model
def test_a_body_of_any_text_is_refused_at_once_and_halts_nobody(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_folder)
    for text in ("the quick ", "<|im_end|>", "<|im_", "<", "東京", "\\\\ue000"):
        halt_s = 0.0
        prompt_size = 9_500_000 // len(text.encode())
        is_done = threading.Event()

        def ask(content: str = text * prompt_size, is_done: threading.Event = is_done) -> None:
            with pytest.raises(ContextLengthExceeded):
                tokenizer.encode(render([Message("user", content)], [], tokenizer.template), max_model_len=8192)
            is_done.set()

        thread = threading.Thread(target=ask)
        thread.start()
        before = time.monotonic()
        while thread.is_alive():
            is_done.wait(0.001)
            halt_s = max(halt_s, time.monotonic() - before)
            before = time.monotonic()
        assert is_done.is_set()
        assert halt_s < 0.3


@pytest.mark.model
def test_the_default_model(smollm2_folder: Path) -> None:
    tokenizer = Tokenizer.load(smollm2_folder)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.eos_token_ids == {2}
    prompt = render([Message("user", "say <|im_end|>")], [], tokenizer.template)
    assert [segment.control_id for segment in prompt.segments if segment.control_id] == [1, 2, 1, 2, 1]
    assert prompt.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
