"""Shared content below the pool: on disk after a restart, and in Redis. All is real but the model."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sessions.parts import IndexOptions
from sessions.reports import Usage
from sessions.service import ChatService
from sessions.types import ChatRequest, Message, SamplingParams, SharedPrompt, Tenant
from tests.fakes import open_fake_service
from tests.integration.index.index_servers import ValkeyServer, eventually

DECLARED = "You are the assistant of a library. Books are lent for four weeks. " * 3
NUM_SHARED = (len("<system\n") + len(DECLARED) + len("<\n")) // 16 * 16


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[ChatService]:
    opened = await open_fake_service(
        num_blocks=256, shared_prompts=[SharedPrompt((Message("system", DECLARED),))], **options
    )
    opened.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)  # so slow that the disk is always worth it
    try:
        yield opened
    finally:
        await opened.close()


def request(tenant: str, question: str) -> ChatRequest:
    params = SamplingParams(temperature=0, max_tokens=4)
    return ChatRequest((Message("system", DECLARED), Message("user", question)), params, tenant=Tenant(tenant))


async def say(service: ChatService, asked: ChatRequest) -> Usage:
    generation = await service.start(asked)
    async for _ in generation:
        pass
    generation.close()
    return generation.usage()


async def test_after_a_restart_shared_content_comes_from_disk_for_whoever_asks_first(tmp_path: Path) -> None:
    question = "What is it, and why, and who was it that told you so long ago?"
    async with service(disk=(tmp_path, 2**24)) as before:
        told = await say(before, request("alice", question))
    async with service(disk=(tmp_path, 2**24)) as after:
        (disk,) = after._lower.tiers._tiers
        index = disk.store._index
        assert {segment.head is not None for segment in index if segment.before is None} == {False, True}
        assert (await after.explain(request("alice", question))).tiers.disk > NUM_SHARED
        assert (await after.explain(request("bob", question))).tiers.disk == NUM_SHARED
        bob = await say(after, request("bob", question))
        assert bob.restored_tokens == bob.cached_tokens == NUM_SHARED
        alice = await say(after, request("alice", question))
        assert alice.cached_tokens >= told.prompt_tokens - 16
        assert 0 < alice.restored_tokens < told.prompt_tokens - NUM_SHARED, "of her own, the shared are in the pool"
        assert await after.cache.drop_all(Tenant("alice")) > 0
        assert (await after.explain(request("carol", question))).tiers.pool == NUM_SHARED
    async with service(disk=(tmp_path, 2**24)) as again:
        assert (await again.explain(request("alice", question))).tiers.disk == NUM_SHARED


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


async def test_another_replica_is_seen_to_hold_what_is_shared_whoever_computed_it(valkey: ValkeyServer) -> None:
    index = IndexOptions("redis", valkey.url, timeout_ms=5000)
    async with service(index=index) as one, service(index=index) as two:
        await eventually(lambda: one.index.should_ask() and two.index.should_ask())
        told = await say(one, request("alice", "What is it?"))
        await eventually(lambda: one.index.stats().published >= 2)
        own = await two.explain(request("alice", "What is it?"))
        assert own.tiers.elsewhere == told.prompt_tokens // 16 * 16 > NUM_SHARED
        assert (await two.explain(request("bob", "What is it?"))).tiers.elsewhere == NUM_SHARED
        await say(two, request("bob", "What is it?"))
        assert two.stats().index_elsewhere_tokens == NUM_SHARED
        assert await one.cache.drop_all(Tenant("alice")) > 0
        await say(one, request("carol", "Else?"))  # what was dropped is told with the next step
        await eventually(lambda: one.index.stats().cuts >= 1)
        found = (await two.explain(request("alice", "What is it?"))).tiers
        assert (found.pool, found.elsewhere) == (NUM_SHARED, 0)
