"""Token-exact turns over HTTP (promise P1): a turn computes its new tokens, and at most one of the reply before it.

The fake model's replies are random bytes at any temperature, so text that is read back never gives the same tokens:
where a reply is not spliced, it shows.
"""

from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI

from sessions.service import ChatService
from tests.integration.test_conversation import idle, serving

GLUE = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LIMIT = 24


@dataclass
class Turn:
    """What one request cost."""

    content: str
    num_prompt: int
    num_cached: int
    spliced: int


def new_tokens(service: ChatService, question: str) -> int:
    """Tokens of a question and of what the template writes around it, after a reply."""
    glue = GLUE.format(question)
    num_control = glue.count("<|")
    return num_control + len(glue.replace("<|im_end|>", "").replace("<|im_start|>", ""))  # a token is a byte


async def ask(client: AsyncOpenAI, messages: list[Any], **more: Any) -> Any:
    options = {"max_tokens": LIMIT, "temperature": 1.0, "extra_body": {"ignore_eos": True}} | more
    return await client.chat.completions.create(model="fake", messages=messages, **options)


def turn(reply: Any, index: int = 0) -> Turn:
    usage = reply.usage
    return Turn(
        reply.choices[index].message.content,
        usage.prompt_tokens,
        usage.prompt_tokens_details.cached_tokens,
        reply.anaphora["spliced_messages"],
    )


def recomputed(service: ChatService, turn: Turn, question: str) -> int:
    """Tokens computed beyond the new ones."""
    return turn.num_prompt - turn.num_cached - new_tokens(service, question)


async def test_twelve_turns_at_temperature_1_recompute_one_token_each_at_most() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Question 0?"}]
        last = turn(await ask(client, messages))
        for number in range(1, 13):
            question = f"Question {number}?"
            messages += [{"role": "assistant", "content": last.content}, {"role": "user", "content": question}]
            last = turn(await ask(client, messages, temperature=number % 3 / 2))
            assert recomputed(service, last, question) <= 1
            assert last.spliced == number
        await idle(service)


async def test_without_splicing_the_reply_is_read_back_and_lost() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        first = turn(await ask(client, messages))
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": "Two?"}]
        plain = {"extra_body": {"ignore_eos": True, "anaphora": {"splice": False}}}
        second = turn(await ask(client, messages, **plain))
        assert second.spliced == 0 and recomputed(service, second, "Two?") > LIMIT
        third = turn(await ask(client, messages))
        assert third.spliced == 1 and recomputed(service, third, "Two?") <= 1


@pytest.mark.parametrize("cut", [3, 8])
async def test_a_reply_that_a_stop_string_ended(cut: int) -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        whole = turn(await ask(client, messages, temperature=0))
        stop = whole.content[cut : cut + 2]
        stopped = await ask(client, messages, temperature=0, stop=[stop])
        content = stopped.choices[0].message.content
        assert stopped.choices[0].finish_reason == "stop" and whole.content.startswith(content) and content
        messages += [{"role": "assistant", "content": content}, {"role": "user", "content": "Two?"}]
        second = turn(await ask(client, messages))
        assert second.spliced == 1 and recomputed(service, second, "Two?") <= 1


async def beginning(stream: Any) -> str:
    """The first dozen characters; what comes after them is not read.

    No loop that is left: Python would close its generator at some time, beside a test that closes the stream.
    """
    text = ""
    while len(text) < 12:
        text += (await anext(stream)).choices[0].delta.content or ""
    return text


async def test_a_client_that_left_goes_on_from_what_it_had() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        stream = await ask(client, messages, stream=True, max_tokens=4000)
        text = await beginning(stream)
        await stream.close()
        await idle(service)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Two?"}]
        second = turn(await ask(client, messages))
        assert second.spliced == 1 and recomputed(service, second, "Two?") <= 1
        again = turn(await ask(client, messages))
        assert again.num_cached == again.num_prompt - 1


async def test_while_the_reply_is_still_being_said_its_beginning_can_be_taken_up() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        stream = await ask(client, messages, stream=True, max_tokens=4000)
        text = await beginning(stream)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Two?"}]
        second = turn(await ask(client, messages))
        assert second.spliced == 1
        await stream.close()
        await idle(service)


async def conversation(client: AsyncOpenAI, num_turns: int) -> list[Any]:
    messages: list[Any] = []
    for number in range(num_turns):
        messages.append({"role": "user", "content": f"Question {number}?"})
        messages.append({"role": "assistant", "content": turn(await ask(client, messages)).content})
    return messages


async def test_regenerating_and_forking_at_every_turn() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages = await conversation(client, 5)
        for number in reversed(range(5)):
            again = turn(await ask(client, messages[: 2 * number + 1]))
            assert again.spliced == number and again.num_cached == again.num_prompt - 1
            forked = turn(await ask(client, [*messages[: 2 * number], {"role": "user", "content": "Another?"}]))
            assert forked.spliced == number
            if number:
                assert recomputed(service, forked, "Another?") <= 1


async def test_everything_before_an_edit_still_hits() -> None:
    async with serving(num_blocks=1024) as (client, _):
        messages = await conversation(client, 4)
        before_edit = turn(await ask(client, messages[:5]))
        edited = [*messages[:5], {"role": "assistant", "content": "Something else."}, *messages[6:]]
        after = turn(await ask(client, [*edited, {"role": "user", "content": "Go on."}]))
        assert after.num_cached >= before_edit.num_prompt - 1
        assert after.spliced == 2
        question = [*messages[:4], {"role": "user", "content": "Question two, edited?"}, *messages[5:]]
        assert turn(await ask(client, [*question, {"role": "user", "content": "Go on."}])).spliced == 2


async def test_content_as_parts_is_the_same_reply() -> None:
    async with serving(num_blocks=1024) as (client, service):
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        text = turn(await ask(client, messages)).content
        parts = [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]
        messages += [{"role": "assistant", "content": parts}, {"role": "user", "content": "Two?"}]
        second = turn(await ask(client, messages))
        assert second.spliced == 1 and recomputed(service, second, "Two?") <= 1


async def test_a_stream_says_in_its_first_chunk_what_was_spliced() -> None:
    async with serving(num_blocks=1024) as (client, _):
        messages = [*await conversation(client, 1), {"role": "user", "content": "Two?"}]
        chunks = [chunk async for chunk in await ask(client, messages, stream=True)]
        assert chunks[0].anaphora == {"spliced_messages": 1}
        assert all(getattr(chunk, "anaphora", None) is None for chunk in chunks[1:])


async def test_another_tenants_salt_splices_nothing() -> None:
    async with serving(num_blocks=1024) as (client, _):
        messages = [*await conversation(client, 2), {"role": "user", "content": "Go on."}]
        salted = {"extra_body": {"ignore_eos": True, "cache_salt": "other"}}
        reply = turn(await ask(client, messages, **salted))
        assert (reply.spliced, reply.num_cached) == (0, 0)
