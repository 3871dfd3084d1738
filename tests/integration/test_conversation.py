"""The real openai client against a real uvicorn over the real service, pool, scheduler and engine thread; the model is
the fake one, whose every token depends on all tokens before it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from openai import AsyncOpenAI

from proxy.app import create_app
from proxy.settings import Settings
from sessions.service import ChatService
from tests.fakes import open_fake_service


async def eventually(condition: Callable[[], bool]) -> None:
    """Poll for what announces itself by no event a test could wait for."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(service: ChatService | None = None, **engine: int) -> AsyncIterator[tuple[AsyncOpenAI, ChatService]]:
    """A client of `service`, or of one over the fake model. The service is closed at the end."""
    service = service or await open_fake_service(**engine)
    config = uvicorn.Config(create_app(Settings(index="off"), service), port=0, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client, service
    finally:
        server.should_exit = True
        await task
        await service.close()


async def idle(service: ChatService) -> None:
    """Wait until no request runs, then hold the pool to its invariants: nothing is referenced."""
    await eventually(lambda: not (service.stats().num_requests_running or service.stats().num_requests_waiting))
    await asyncio.wrap_future(service.engine.call(service.engine.scheduler.check_integrity))
    assert service.stats().kv_cache_usage == 0


def ask(client: AsyncOpenAI, messages: list[Any], **more: Any) -> Any:
    return client.chat.completions.create(
        model="fake", messages=messages, **({"max_tokens": 12, "temperature": 0} | more)
    )


async def test_every_turn_pays_for_its_new_tokens_only() -> None:
    async with serving(num_blocks=512) as (client, service):
        messages: list[Any] = [{"role": "system", "content": "You are terse."}]
        before = 0
        for turn in range(10):
            messages.append({"role": "user", "content": f"Question {turn}?"})
            reply = await ask(client, messages)
            # The fake's tokens are random bytes, so a reply's text drifts when it is read back; its prompt does not.
            assert reply.usage.prompt_tokens_details.cached_tokens >= before
            assert reply.usage.prompt_tokens_details.cache_write_tokens == (
                reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
            )
            before = reply.usage.prompt_tokens
            messages.append({"role": "assistant", "content": "A fixed reply."})
        await idle(service)


async def test_fifty_streams_and_twenty_disconnects_leave_nothing_behind() -> None:
    async with serving(num_blocks=512, max_num_seqs=16) as (client, service):

        async def one(index: int) -> int:
            stream = await ask(client, [{"role": "user", "content": f"Stream {index}"}], stream=True, max_tokens=40)
            count = 0
            async for _ in stream:
                count += 1
                if index < 20 and count == 1 + index % 5:
                    await stream.close()
                    return count
            return count

        counts = await asyncio.gather(*(one(index) for index in range(50)))
        assert all(counts)
        await idle(service)


async def test_a_whole_reply_whose_client_leaves_is_aborted() -> None:
    endless = {"ignore_eos": True}
    async with serving(num_blocks=4096, max_model_len=60_000) as (client, service):
        task = asyncio.create_task(
            ask(client, [{"role": "user", "content": "Long"}], max_tokens=50_000, extra_body=endless)
        )
        await eventually(lambda: service.stats().num_requests_running > 0)
        task.cancel()
        await idle(service)
        assert 0 < service.stats().generation_tokens < 50_000


async def test_choices_share_the_prompt_and_the_seed_repeats_them() -> None:
    async with serving(num_blocks=512) as (client, service):
        question = [{"role": "user", "content": "x" * 200}]
        first = await ask(client, question, n=4, temperature=1, seed=7)
        again = await ask(client, question, n=4, temperature=1, seed=7)
        assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
        assert first.usage.completion_tokens <= 4 * 12
        assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
        await idle(service)


async def test_a_salt_shares_nothing() -> None:
    async with serving(num_blocks=512) as (client, _):
        question = [{"role": "user", "content": "secret " * 30}]
        await ask(client, question)
        salted = await ask(client, question, extra_body={"cache_salt": "other"})
        plain = await ask(client, question)
        assert salted.usage.prompt_tokens_details.cached_tokens == 0
        assert plain.usage.prompt_tokens_details.cached_tokens == plain.usage.prompt_tokens - 1


async def test_too_long_a_prompt_is_named() -> None:
    async with serving(num_blocks=8) as (client, _):
        from openai import BadRequestError

        with pytest.raises(BadRequestError) as refusal:
            await ask(client, [{"role": "user", "content": "x" * 1000}])
        assert refusal.value.code == "context_length_exceeded" and refusal.value.param == "messages"
