"""POST /v1/completions as the openai client sees it: one test per row of the contract, named after it."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import RunningServer, running, shared_tokenizer
from tests.fakes import fake_logprob

ASK: dict[str, Any] = {"model": "fake", "prompt": "def f(x):", "seed": 1}


@pytest.fixture(scope="module")
def loose(server: RunningServer) -> Iterator[OpenAI]:
    """Without strict validation: openai's types forbid the nulls that OpenAI itself sends (a chunk's finish_reason, the
    first token's logprob)."""
    with OpenAI(base_url=server.origin + "/v1", api_key="none", max_retries=0, timeout=20) as connected:
        yield connected


def refusal(client: OpenAI, **fields: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**(ASK | fields))
    return caught.value


def text_of(client: OpenAI, **fields: Any) -> str:
    return client.completions.create(**(ASK | fields)).choices[0].text


def ids_of(text: str) -> list[int]:
    return [int(token_id) for token_id in shared_tokenizer().encode_text(text, scope="")]


def test_answer(client: OpenAI) -> None:
    answer = client.completions.create(**ASK)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer.model == "fake"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 16), "16 tokens by default"


async def test_answer_async(server: RunningServer) -> None:
    async with server.async_client() as client:
        answer = await client.completions.create(**ASK)
    assert answer.choices[0].text


def test_prompt_as_text_ids_and_lists_of_them(client: OpenAI) -> None:
    ids = ids_of(ASK["prompt"])
    alone = text_of(client)
    assert text_of(client, prompt=ids) == alone
    assert text_of(client, prompt=[ASK["prompt"]]) == alone
    assert text_of(client, prompt=[ids]) == alone


@pytest.mark.parametrize(
    "prompt",
    [[], "", [""], [[]], ["a", 1], [1, "a"], [[1], "a"], [[1], 2], [10**6], [-1], [[1, 10**6]], [1.5], {}, 3, None],
)
def test_prompt_that_is_none(client: OpenAI, prompt: Any) -> None:
    assert refusal(client, prompt=prompt).param in ("prompt", "prompt[0]")


def test_text_that_looks_like_a_control_token_stays_text(client: OpenAI) -> None:
    answer = client.completions.create(**(ASK | {"prompt": "<|im_end|>"}))
    assert answer.usage is not None and answer.usage.prompt_tokens == len("<|im_end|>")


def test_ids_of_control_tokens_must_be_meant(client: OpenAI) -> None:
    (end,) = shared_tokenizer().eos_token_ids
    error = refusal(client, prompt=[65, end])
    assert error.param == "prompt" and "control_tokens" in error.message
    assert client.completions.create(**(ASK | {"prompt": [65, end]}), extra_body={"anaphora": {"control_tokens": True}})


def test_prompts_times_n(client: OpenAI) -> None:
    answer = client.completions.create(**(ASK | {"prompt": ["one", "two"], "n": 3, "max_tokens": 4}))
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 24), "a prompt's n choices share it"
    two = client.completions.create(**(ASK | {"prompt": "two", "n": 3, "max_tokens": 4}))
    assert [c.text for c in answer.choices[3:]] == [c.text for c in two.choices], "whoever is beside it"


def test_too_many_choices_in_all(client: OpenAI) -> None:
    assert refusal(client, prompt=["a"] * 65, n=2).param == "prompt"
    assert refusal(client, n=129).param == "n"


def test_max_tokens(client: OpenAI) -> None:
    answer = client.completions.create(**ASK, max_tokens=3)
    assert answer.usage is not None and answer.usage.completion_tokens == 3
    assert refusal(client, max_tokens=-1).param == "max_tokens"
    assert refusal(client, max_tokens=0).param == "max_tokens"


@pytest.mark.parametrize("fields", [
    {"temperature": 0}, {"temperature": 2}, {"top_p": 0.5}, {"stop": "q"}, {"stop": ["q", "r"]}, {"seed": -5},
    {"presence_penalty": 1}, {"frequency_penalty": -1}, {"logit_bias": {"5": 10}}, {"user": "u"}, {"best_of": 1},
    {"n": 2, "best_of": 2}, {"suffix": ""}, {"logprobs": 0}, {"echo": False}, {"stream": False},
    {"extra_body": {"repetition_penalty": 1.2, "top_k": 5, "min_p": 0.1, "cache_salt": "s", "ignore_eos": True}},
    {"extra_body": {"prompt_cache_options": {"mode": "explicit"}, "unknown": 1}},
])  # fmt: skip
def test_taken(client: OpenAI, fields: dict[str, Any]) -> None:
    assert client.completions.create(**(ASK | fields)).choices


@pytest.mark.parametrize(("param", "fields"), [
    ("temperature", {"temperature": 2.1}), ("top_p", {"top_p": -1}), ("stop", {"stop": list("abcde")}),
    ("seed", {"seed": 2**64}), ("presence_penalty", {"presence_penalty": 3}), ("suffix", {"suffix": "x"}),
    ("frequency_penalty", {"frequency_penalty": -3}), ("logit_bias", {"logit_bias": {"999": 1}}),
    ("best_of", {"best_of": 2}), ("best_of", {"n": 2, "best_of": 1}), ("logprobs", {"logprobs": 6}),
    ("stream_options", {"stream_options": {"include_usage": True}}), ("echo", {"echo": "x"}),
    ("repetition_penalty", {"extra_body": {"repetition_penalty": 0}}), ("model", {"model": ""}),
])  # fmt: skip
def test_refused(client: OpenAI, param: str, fields: dict[str, Any]) -> None:
    assert refusal(client, **fields).param == param


def test_model_unknown(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(**(ASK | {"model": "other"}))
    assert caught.value.code == "model_not_found"


def test_too_long_a_prompt(client: OpenAI) -> None:
    for prompt in ("x" * 9000, [65] * 9000):
        error = refusal(client, prompt=prompt)
        assert (error.code, error.param) == ("context_length_exceeded", "prompt")


def test_stop_is_not_in_the_text(client: OpenAI) -> None:
    whole = text_of(client, max_tokens=60)
    letter = next(character for character in reversed(whole) if character.isascii() and character.isalnum())
    cut = client.completions.create(**ASK, max_tokens=60, stop=letter).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(letter)], "stop")


def test_echo(client: OpenAI) -> None:
    assert text_of(client, echo=True) == ASK["prompt"] + text_of(client)
    assert text_of(client, echo=True, max_tokens=0) == ASK["prompt"]
    assert text_of(client, echo=True, max_tokens=0, prompt=ids_of("naïve")) == "naïve"
    usage = client.completions.create(**ASK, echo=True, max_tokens=0).usage
    assert usage is not None and usage.completion_tokens == 0


def test_logprobs(client: OpenAI) -> None:
    choice = client.completions.create(**ASK, logprobs=2).choices[0]
    said = choice.logprobs
    assert said is not None and said.tokens and said.token_logprobs and said.top_logprobs and said.text_offset
    assert len(said.tokens) == len(said.token_logprobs) == len(said.top_logprobs) == len(said.text_offset)
    for token, logprob, top in zip(said.tokens, said.token_logprobs, said.top_logprobs, strict=True):
        assert len(top) == 2 and max(top, key=lambda text: top[text]) == token and top[token] == logprob
    for token, offset in zip(said.tokens, said.text_offset, strict=True):
        assert token.startswith(("bytes:", "<|")) or choice.text[offset] == token
    none = client.completions.create(**ASK, logprobs=0).choices[0].logprobs
    assert none is not None and all(len(top) == 1 for top in none.top_logprobs or ())


def test_echo_with_logprobs(loose: OpenAI) -> None:
    """All of the prompt is scored, though all of it is cached."""
    prompt = "naïve prompts, twice " * 40
    for _ in range(2):
        answer = loose.completions.create(**(ASK | {"prompt": prompt}), echo=True, logprobs=1, max_tokens=0)
        said = answer.choices[0].logprobs
        assert said is not None and said.tokens is not None and said.token_logprobs is not None
        ids = ids_of(prompt)
        assert len(said.tokens) == len(ids)
        assert said.token_logprobs == [None, *map(fake_logprob, ids[1:])]
        assert said.top_logprobs is not None and said.top_logprobs[0] is None
        assert said.text_offset == offsets(prompt)


def offsets(text: str) -> list[int]:
    """Of every byte: the characters that are whole before it."""
    return [len(text.encode()[:at].decode("utf-8", "ignore")) for at in range(len(text.encode()))]


def test_choices_share_a_scored_prompt() -> None:
    prompt = "scored once, said eight times " * 20
    with running() as server, OpenAI(base_url=server.origin + "/v1", api_key="none", timeout=20) as client:
        answer = client.completions.create(**(ASK | {"prompt": prompt}), echo=True, logprobs=1, n=8)
        first, *others = (choice.logprobs for choice in answer.choices)
        assert first is not None and first.token_logprobs is not None
        for other in others:
            assert other is not None and other.token_logprobs is not None
            assert other.token_logprobs[: len(prompt)] == first.token_logprobs[: len(prompt)]
        stats = server.stats()
        assert stats.prompt_tokens - stats.prefix_cache_hits <= len(prompt) + 7, "one token of each other choice"
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_logprobs_of_the_prompt_do_not_change_the_completion(loose: OpenAI) -> None:
    plain = loose.completions.create(**ASK, echo=True).choices[0]
    scored = loose.completions.create(**ASK, echo=True, logprobs=0).choices[0]
    assert scored.text == plain.text
    assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
    assert len(scored.logprobs.token_logprobs) <= len(ids_of(ASK["prompt"])) + 16


@pytest.mark.parametrize("fields", [{}, {"echo": True, "logprobs": 3, "n": 2}, {"prompt": ["a", "b"], "echo": True}])
def test_stream(loose: OpenAI, fields: dict[str, Any]) -> None:
    whole = loose.completions.create(**(ASK | fields))
    texts, tokens, reasons = {}, {}, {}  # type: dict[int, str], dict[int, list[Any]], dict[int, str]
    ids = set()
    for chunk in loose.completions.create(**(ASK | fields), stream=True):
        ids.add((chunk.id, chunk.object, chunk.created))
        for choice in chunk.choices:
            assert choice.index not in reasons, "nothing comes after a choice's end"
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.logprobs is not None:
                said = choice.logprobs
                tokens.setdefault(choice.index, []).extend(
                    zip(said.tokens or (), said.token_logprobs or (), said.text_offset or (), strict=True)
                )
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert len(ids) == 1
    for choice in whole.choices:
        assert (texts[choice.index], reasons[choice.index]) == (choice.text, choice.finish_reason)
        if choice.logprobs is not None:
            said = choice.logprobs
            assert tokens[choice.index] == list(
                zip(said.tokens or (), said.token_logprobs or (), said.text_offset or (), strict=True)
            )


def test_stream_include_usage(loose: OpenAI) -> None:
    *chunks, last = loose.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 16


def test_a_files_text_is_a_shared_prefix() -> None:
    """Code completion: one file, different cursors."""
    file = "".join(f"line {number}\n" for number in range(60))
    with running() as server, server.client() as client:

        def cached(prompt: str, **fields: Any) -> int:
            usage = client.completions.create(**(ASK | {"prompt": prompt, "max_tokens": 1}), **fields).usage
            assert usage is not None and usage.prompt_tokens_details is not None
            assert usage.prompt_tokens_details.cached_tokens is not None
            return usage.prompt_tokens_details.cached_tokens

        assert cached(file) == 0
        assert cached(file[:300]) >= 288
        assert cached(file + "more") >= len(file) - 1
        assert cached(file, extra_body={"cache_salt": "other"}) == 0
        assert cached(file, extra_body={"prompt_cache_options": {"mode": "explicit"}}) == 0


def test_an_answer_is_sent_at_once_and_ends_with_done(server: RunningServer) -> None:
    sent = httpx.post(server.origin + "/v1/completions", json=ASK | {"stream": True, "max_tokens": 2})
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert sent.text.endswith("data: [DONE]\n\n")
