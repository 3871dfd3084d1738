"""Stored responses and conversations in a Redis: after a restart, on two replicas at once, and while it is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from sessions.documents import Keeping
from sessions.index import IndexSettings
from sessions.parts import IndexOptions
from sessions.startup import ServiceOptions, open_service
from tests.contract.conftest import shared_tokenizer
from tests.fakes import byte_tokenizer, open_fake_service
from tests.integration.index.index_servers import ValkeyServer, eventually
from tests.integration.redis_faults import frozen, killed
from tests.integration.test_conversation import serving
from tests.integration.test_token_drift import Glue
from tests.integration.test_tool_turns import OPENS_THOUGHTS
from tests.oracle import cache_dir

LIMIT = 24
BLOCK_SIZE = 16
GLUE = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def redis_server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def replica(server: ValkeyServer, disk: Path | None = None) -> AsyncIterator[AsyncOpenAI]:
    client = IndexSettings(keeping=Keeping(), documents_timeout_s=0.3)
    service = await open_fake_service(
        index=IndexOptions("redis", server.url, 5_000, client),
        tokenizer=shared_tokenizer(),
        disk=(disk, 64 << 20) if disk else None,
        num_blocks=1024,
    )
    service.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)  # slower than any disk
    async with serving(service) as (connected, _):
        await eventually(lambda: service.index.state == "redis")
        yield connected


async def ask(client: AsyncOpenAI, question: str, **more: Any) -> Any:
    options = {"max_output_tokens": LIMIT, "temperature": 1.0, "extra_body": {"ignore_eos": True}} | more
    return await client.responses.create(model="fake", input=question, **options)


def recomputed(response: Any, question: str) -> int:
    """Tokens computed beyond the new ones; a token is a byte, four more are control tokens."""
    glue = GLUE.format(question)
    num_new = len(glue.replace("<|im_end|>", "").replace("<|im_start|>", "")) + glue.count("<|")
    usage = response.usage
    return int(usage.input_tokens - usage.input_tokens_details.cached_tokens - num_new)


async def test_a_restarted_server_goes_on_where_it_was(redis_server: ValkeyServer, tmp_path: Path) -> None:
    async with replica(redis_server, tmp_path) as client:
        response = await ask(client, "Question 0?")
        for number in range(1, 5):
            response = await ask(client, f"Question {number}?", previous_response_id=response.id)
        conversation = await client.conversations.create()
        await ask(client, "Question 0?", conversation=conversation.id)
    async with replica(redis_server, tmp_path) as client:
        assert (await client.responses.retrieve(response.id)).output_text == response.output_text
        after = await ask(client, "Question 5?", previous_response_id=response.id)
        assert after.anaphora["spliced_messages"] == 5
        assert recomputed(after, "Question 5?") <= 1 + BLOCK_SIZE, "the disk has whole blocks"
        for number in range(6, 10):
            question = f"Question {number}?"
            after = await ask(client, question, previous_response_id=after.id)
            assert recomputed(after, question) <= 1 and after.anaphora["spliced_messages"] == number
        talk = await ask(client, "Question 1?", conversation=conversation.id)
        assert talk.anaphora["spliced_messages"] == 1


async def test_two_replicas_have_the_same_responses(redis_server: ValkeyServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        first = await ask(one, "One?")
        second = await ask(other, "Two?", previous_response_id=first.id)
        assert second.anaphora["spliced_messages"] == 1
        await one.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await ask(other, "Three?", previous_response_id=second.id)


async def test_turns_added_to_a_conversation_at_once_are_all_there(redis_server: ValkeyServer) -> None:
    async with replica(redis_server) as one, replica(redis_server) as other:
        conversation = await one.conversations.create()
        clients = [one, other] * 3
        questions = [f"Question {number}?" for number in range(len(clients))]
        asked = zip(clients, questions, strict=True)
        await asyncio.gather(*(ask(client, question, conversation=conversation.id) for client, question in asked))
        items = [item async for item in await one.conversations.items.list(conversation.id, order="asc")]
        said: list[Any] = [(item.role, item.content[0].text) for item in items]  # type: ignore[union-attr]
        assert sorted(text for role, text in said if role == "user") == questions
        assert [role for role, _ in said] == ["user", "assistant"] * len(clients)


@pytest.mark.parametrize("fault", [killed, frozen], ids=["killed", "frozen"])
async def test_while_redis_is_away_what_is_stored_is_unavailable_not_missing(
    redis_server: ValkeyServer, fault: Any
) -> None:
    async with replica(redis_server) as client:
        response, conversation = await ask(client, "One?"), await client.conversations.create()
        with fault(redis_server):
            for call in (
                lambda: ask(client, "Two?", previous_response_id=response.id),
                lambda: ask(client, "Two?", conversation=conversation.id),
                lambda: client.responses.retrieve(response.id),
                lambda: client.responses.delete(response.id),
            ):
                began_at = time.monotonic()
                with pytest.raises(openai.InternalServerError) as refused:
                    await call()
                assert (refused.value.status_code, refused.value.code) == (503, "store_unavailable")
                assert refused.value.response.headers["retry-after"] == "1"
                assert time.monotonic() - began_at < 2
            alone = await ask(client, "Alone?")
            assert alone.output_text and alone.store is False
        if fault is frozen:

            async def is_back() -> bool:
                try:
                    return bool((await ask(client, "Two?", previous_response_id=response.id)).store)
                except openai.InternalServerError:
                    return False

            async with asyncio.timeout(10):
                while not await is_back():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)


async def test_nobody_without_the_secret_can_name_what_is_in_redis(redis_server: ValkeyServer) -> None:
    async with replica(redis_server) as client:
        response = await ask(client, "A very particular question?")
        keys: Any = redis_server.command("KEYS", "doc:*")
        assert sorted(key.decode().rpartition(":")[2] for key in keys) == sorted([response.id, "used"])
        assert all(b"default" not in key for key in keys)
        assert all(0 < int(redis_server.command("TTL", key)) <= 30 * 86_400 for key in keys)  # type: ignore[call-overload]


@pytest.mark.model
@pytest.mark.slow
async def test_three_turns_of_the_default_model_recompute_one_token_each_at_most() -> None:
    glue = Glue()
    service = await open_service(ServiceOptions(cache_dir(), pool_size="8000 tokens", index="off"))
    async with serving(service) as (client, _):
        model, response = "SmolLM2-135M-Instruct", None
        for number in range(4):
            question = f"And a list of {number + 2} rivers?"
            options: dict[str, Any] = {"previous_response_id": response.id} if response else {}
            response = await client.responses.create(
                model=model, input=question, temperature=1.0, max_output_tokens=32, **options
            )
            usage: Any = response.usage
            if number:
                num_computed = usage.input_tokens - usage.input_tokens_details.cached_tokens
                assert num_computed - glue.num_tokens(question) <= 1


async def test_thoughts_are_items_and_stay_in_the_conversation(redis_server: ValkeyServer) -> None:
    tokenizer = byte_tokenizer(OPENS_THOUGHTS, ("<think>", "</think>", "<tool_call>", "</tool_call>"))
    index = IndexOptions("redis", redis_server.url, 5_000)
    service = await open_fake_service(tokenizer=tokenizer, index=index, num_blocks=2048, max_model_len=16_000)
    async with serving(service) as (client, _):
        await eventually(lambda: service.index.state == "redis")
        options: dict[str, Any] = {"max_output_tokens": 3_000, "temperature": 1.0, "extra_body": {"seed": 3}}
        response = await ask(client, "One?", **options)
        assert [item.type for item in response.output] == ["reasoning", "message"]
        thought = response.output[0].content[0].text
        assert thought and response.usage.output_tokens_details.reasoning_tokens > 0
        for number in range(2):
            last = response
            response = await ask(client, "On?", previous_response_id=last.id, **options)
            usage = response.usage
            assert usage.input_tokens_details.cached_tokens >= last.usage.input_tokens + last.usage.output_tokens - 1
            assert response.anaphora["spliced_messages"] == number + 1
        stream = await ask(client, "On?", stream=True, **options)
        kinds = [kind for kind, _ in groupby([event.type.removeprefix("response.") async for event in stream])]
        assert kinds[2:5] == ["output_item.added", "content_part.added", "reasoning_text.delta"]
        assert kinds[5:8] == ["reasoning_text.done", "content_part.done", "output_item.done"]
