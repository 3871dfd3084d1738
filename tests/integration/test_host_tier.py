"""KV in memory of the host below the pool: what the pool loses comes back from there. All is real but the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sessions.service import ChatService
from sessions.tiers.segment_memory import SegmentMemory
from sessions.types import ChatRequest, Message, SamplingParams, SharedPrompt, Tenant
from tests.fakes import open_fake_service, say, text_of
from tests.integration.index.index_servers import eventually

SIZE = 16
ALICE, BOB = Tenant("alice"), Tenant("bob")
PLENTY = 2**24
WORDS = "What is it, and why, and who was it that told you so long ago? " * 4
NUM_BLOCKS = 40
"""One conversation and what goes on from it, not two."""


@asynccontextmanager
async def service(num_blocks: int = NUM_BLOCKS, host_bytes: int = PLENTY, **options: Any) -> AsyncIterator[ChatService]:
    opened = await open_fake_service(num_blocks=num_blocks, host_bytes=host_bytes, **options)
    opened.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)  # so slow that loading is always worth it
    try:
        yield opened
    finally:
        await opened.close()
        opened.engine.scheduler.check_integrity()
        for tier in opened._lower.tiers._tiers:
            tier.store.check_integrity()


def asked(name: str, tenant: Tenant = ALICE, system: str = "", salt: str | None = None) -> ChatRequest:
    said = [Message("system", system)] if system else []
    params = SamplingParams(temperature=0, max_tokens=6)
    return ChatRequest((*said, Message("user", f"{name}: {WORDS}")), params, tenant=tenant, cache_salt=salt)


async def answer(service: ChatService, request: ChatRequest) -> tuple[str, int, int]:
    """Text, cached tokens, and those of them from below the pool."""
    generation = await service.start(request)
    text = await text_of(generation)
    usage = generation.usage()
    return text, usage.cached_tokens, usage.restored_tokens


async def fill(service: ChatService) -> None:
    """Somebody needs the whole pool."""
    silent = ChatRequest((Message("user", ""),), SamplingParams(max_tokens=1), tenant=Tenant("carol"))
    filler = "x" * (service.pool_tokens - await service.count(silent) - 1)
    await say(service, replace(silent, messages=(Message("user", filler),)))


async def push_out(service: ChatService, request: ChatRequest) -> None:
    """Another needs all the room there is, once every tier has what the request left."""
    chain = (await service._prompter.prompt(request)).chain
    tiers = service._lower.tiers._tiers
    await eventually(lambda: all(tier.num_held(chain, 0) == len(chain.hashes) for tier in tiers))
    await fill(service)
    assert (await service.explain(request)).tiers.pool == 0


async def whole(service: ChatService, request: ChatRequest) -> int:
    return (await service.count(request) - 1) // SIZE * SIZE


async def test_what_the_pool_loses_comes_back_from_the_host_with_the_same_answer() -> None:
    async with service(num_blocks=512, host_bytes=0) as roomy:
        cold = await say(roomy, asked("one"))
        assert roomy.stats().host_blocks == 0, "without a size there is none"
    async with service() as one:
        assert await say(one, asked("one")) == cold
        await push_out(one, asked("one"))
        expected = await whole(one, asked("one"))
        tiers = (await one.explain(asked("one"))).tiers
        assert (tiers.pool, tiers.host, tiers.disk) == (0, tiers.held, 0) and tiers.host >= expected
        assert await answer(one, asked("one")) == (cold, expected, expected)
        stats = one.stats()
        assert stats.host_loaded_tokens == expected and stats.host_errors == stats.host_dropped_paths == 0
        assert stats.host_blocks == stats.host_written_blocks and stats.host_bytes > 0 == stats.disk_bytes
        assert (await one.explain(asked("one"))).kind == "hit"


@pytest.mark.parametrize("num_left_blocks", [0, 2])
async def test_what_only_the_host_has_is_explained_as_found(num_left_blocks: int) -> None:
    """Whether the pool has some of it or none. The host has whole blocks: what is less than one is no loss."""
    async with service() as one:
        text = await say(one, asked("one"))
        (said,) = asked("one").messages
        goes_on = replace(asked("one"), messages=(said, Message("assistant", text), Message("user", "And?")))
        await push_out(one, asked("one"))
        if num_left_blocks:
            begins = ChatRequest((Message("user", said.content[: num_left_blocks * SIZE]),), tenant=ALICE)
            await say(one, replace(begins, params=SamplingParams(max_tokens=1)))
        found = await one.explain(goes_on)
        assert found.tiers.host > 0 and (found.tiers.pool > 0) == bool(num_left_blocks)
        assert (found.kind, found.lost_to, found.advice, found.missed_tokens) == ("hit", None, "", 0)
        edited = replace(goes_on, messages=(said, Message("assistant", "No."), Message("user", "And?")))
        assert (await one.explain(edited)).kind == "diverged"


async def test_it_is_listed_pictured_and_counted_as_the_host_s() -> None:
    async with service() as one:
        await say(one, asked("one"))
        await push_out(one, asked("one"))
        (held,) = await one.cache.holdings_below(ALICE)
        assert held.tier == "host" and held.num_tokens >= await whole(one, asked("one"))
        assert (await one.cache.picture(ALICE, 50)).tiers == ["host"]
        totals = await one.cache.totals(ALICE)
        assert (totals.pool_tokens, totals.below["host"].num_tokens) == (0, held.num_tokens)
        assert await one.cache.holdings_below(BOB) == [] and (await one.cache.picture(BOB, 50)).runs == []
        assert await one.cache.drop_path(BOB, held.leaf_hash) == 0
        await say(one, asked("one"))
        assert await one.cache.holdings_below(ALICE) == [], "it is in the pool again"


@pytest.mark.parametrize("other", [asked("one", BOB), asked("one", ALICE, salt="mine")], ids=["tenant", "salt"])
async def test_another_tenant_or_salt_finds_nothing_of_it(other: ChatRequest) -> None:
    async with service() as one:
        text = await say(one, asked("one"))
        await push_out(one, asked("one"))
        assert (await one.explain(other)).tiers.held == 0
        assert await answer(one, other) == (text, 0, 0)


async def test_what_the_operator_declared_shared_comes_back_for_whoever_asks_first() -> None:
    declared = "You are the assistant of a library. Books are lent for four weeks. " * 3
    shared = [SharedPrompt((Message("system", declared),))]
    async with service(num_blocks=60, shared_prompts=shared) as one:
        await say(one, asked("one", system=declared))
        await push_out(one, asked("one", system=declared))
        _, cached, restored = await answer(one, asked("one", BOB, system=declared))
        assert 0 < cached == restored < len(declared) + SIZE


@pytest.mark.parametrize("what", ["everything", "the messages", "the entry"])
async def test_what_is_dropped_is_gone_from_the_host(what: str) -> None:
    async with service() as one:
        for tenant in (BOB, ALICE):
            await say(one, asked("one", tenant))
            await push_out(one, asked("one", tenant))
        before = (await one.explain(asked("one"))).tiers.host
        (held,) = await one.cache.holdings_below(ALICE)
        dropped = await {
            "everything": lambda: one.cache.drop_all(ALICE),
            "the messages": lambda: one.cache.drop(asked("one")),
            "the entry": lambda: one.cache.drop_path(ALICE, held.leaf_hash),
        }[what]()
        after = await one.explain(asked("one"))
        if what == "the messages":
            assert after.tiers.held == held.num_tokens - dropped < before, "their last whole block, and what follows it"
        else:
            assert dropped == held.num_tokens and after.tiers.held == 0 and after.kind == "dropped"
        assert (await one.explain(asked("one", BOB))).tiers.host == before, "nobody else's goes"


@pytest.mark.parametrize("when", ["it is read", "it was read"])
async def test_a_drop_while_it_is_read_lets_nothing_come_back(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that is under way goes on with what it has; what it leaves behind is found nowhere."""
    async with service() as one:
        text = await say(one, asked("one"))
        await push_out(one, asked("one"))
        loop, read = asyncio.get_running_loop(), SegmentMemory.read
        drops = []

        def drop() -> None:
            drops.append(asyncio.run_coroutine_threadsafe(one.cache.drop_all(ALICE), loop).result(10))

        def read_and_drop(memory: SegmentMemory, *args: Any) -> Any:
            monkeypatch.setattr(SegmentMemory, "read", read)
            if when == "it is read":
                drop()
            payload = read(memory, *args)
            if when == "it was read":
                drop()
            return payload

        monkeypatch.setattr(SegmentMemory, "read", read_and_drop)
        assert await say(one, asked("one")) == text
        assert drops and drops[0] > 0
        found = await one.explain(asked("one"))
        assert found.tiers.held == 0 and await one.cache.holdings_below(ALICE) == []


async def test_what_the_host_loses_the_disk_gives_back_after_what_the_host_has(tmp_path: Path) -> None:
    num_host_blocks = 2 * 17 + NUM_BLOCKS - 2
    """For all of it but the last block of the first conversation."""
    async with service(host_bytes=num_host_blocks * 16 * SIZE, disk=(tmp_path, PLENTY)) as one:
        text, expected = await say(one, asked("one")), await whole(one, asked("one"))
        await push_out(one, asked("one"))
        await say(one, asked("two"))
        await push_out(one, asked("two"))
        tiers = (await one.explain(asked("one"))).tiers
        assert (tiers.pool, tiers.host, tiers.disk) == (0, expected - SIZE, SIZE)
        before = one.stats()
        assert await answer(one, asked("one")) == (text, expected, expected)
        stats = one.stats()
        assert stats.host_loaded_tokens - before.host_loaded_tokens == expected - SIZE
        assert stats.disk_loaded_tokens - before.disk_loaded_tokens == SIZE


async def test_a_prompt_that_is_computed_faster_than_it_is_copied_is_computed() -> None:
    async with service() as one:
        text = await say(one, asked("one"))
        await push_out(one, asked("one"))
        assert (await answer(one, asked("one")))[2] > 0, "the first time nobody knows how fast it is"
        for _ in range(2000):
            one.engine.scheduler.prefill_rate.observe(10**9, 0.001)
        await push_out(one, asked("one"))
        assert await answer(one, asked("one")) == (text, 0, 0)
