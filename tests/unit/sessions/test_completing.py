"""Prompts of completions: plain texts after the model's BOS, ids as they are; and texts that go on where they ended."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sessions.completing import checked_ids, encode_prompts
from sessions.detokenizer import StopStrings, TextStream
from sessions.errors import ContextLengthExceeded, InvalidRequest
from sessions.long_work import LongWork
from sessions.tokenizer import Tokenizer
from sessions.types import CompletionRequest


@pytest.fixture(scope="module")
def with_bos(mistral_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As Llama 2: every text begins with `<s>`, and with a space before its first piece."""
    folder = tmp_path_factory.mktemp("bos")
    hf: Any = PreTrainedTokenizerFast.from_pretrained(mistral_folder)
    hf.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", hf.convert_tokens_to_ids("<s>"))]
    )
    hf.save_pretrained(folder)
    shutil.copy(mistral_folder / "config.json", folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def chatml(chatml_folder: Path) -> Tokenizer:
    return Tokenizer.load(chatml_folder)


async def encoded(tokenizer: Tokenizer, *prompts: str | tuple[int, ...], **fields: Any) -> Any:
    request = CompletionRequest(prompts, **fields)
    return await encode_prompts(request, tokenizer, LongWork(), scope="", max_model_len=50)


async def test_a_text_begins_as_the_model_begins_every_text(with_bos: Tokenizer, chatml: Tokenizer) -> None:
    (bos,) = with_bos.prefix_ids
    [(ids, echo)] = await encoded(with_bos, "hello world")
    assert ids[0] == bos and bos not in ids[1:]
    assert with_bos.decode(ids) == "hello world"
    assert (echo.text, echo.num_hidden) == ("hello world", 1)
    assert chatml.prefix_ids == ()
    [(ids, echo)] = await encoded(chatml, "hello world")
    assert (chatml.decode(ids), echo.num_hidden) == ("hello world", 0)


async def test_a_text_s_control_tokens_are_text(with_bos: Tokenizer, chatml: Tokenizer) -> None:
    for tokenizer, text in ((with_bos, "<s>[INST]x</s>"), (chatml, "<|im_start|>x<|im_end|>")):
        [(ids, _)] = await encoded(tokenizer, text)
        assert tokenizer.control_ids.isdisjoint(ids[len(tokenizer.prefix_ids) :])
        assert tokenizer.decode(ids) == text


def test_bos_may_open_ids_and_control_tokens_must_be_meant(with_bos: Tokenizer) -> None:
    (bos,) = with_bos.prefix_ids
    assert checked_ids([bos, 300], with_bos, 50, takes_control_tokens=False) == [bos, 300]
    for ids in ([300, bos], [bos, bos]):
        with pytest.raises(InvalidRequest) as caught:
            checked_ids(ids, with_bos, 50, takes_control_tokens=False)
        assert caught.value.param == "prompt"
        assert checked_ids(ids, with_bos, 50, takes_control_tokens=True) == ids


@pytest.mark.parametrize("prompt", ["word " * 60, tuple(range(60))])
async def test_what_does_not_fit(chatml: Tokenizer, prompt: str | tuple[int, ...]) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        await encoded(chatml, prompt)
    assert caught.value.param == "prompt"


async def test_nothing_is_no_prompt(chatml: Tokenizer, with_bos: Tokenizer) -> None:
    for nothing in ("", ()):
        with pytest.raises(InvalidRequest):
            await encoded(chatml, nothing)
    [(ids, _)] = await encoded(with_bos, "")
    assert tuple(ids) == with_bos.prefix_ids, "BOS alone is a prompt"


@pytest.mark.parametrize("text", ["hello world", "the quick brown fox", "東京 is far"])
async def test_a_completion_goes_on_where_its_prompt_ended(with_bos: Tokenizer, text: str) -> None:
    """A decoder drops the space that opens a text: a completion opens none."""
    [(ids, _)] = await encoded(with_bos, text)
    for cut in range(2, len(ids)):
        stream = TextStream(with_bos.decode, StopStrings(()), with_bos.code_point_endings, ids[:cut][-4:])
        said = "".join(stream.decode((token_id,)) for token_id in ids[cut:]) + stream.flush()
        if not with_bos.decode(ids[:cut]).endswith("\N{REPLACEMENT CHARACTER}"):
            assert with_bos.decode(ids[:cut]) + said == text
