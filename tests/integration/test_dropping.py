"""What is dropped stays away, from pool, disk, Redis and process, whatever was under way; and what is not stays."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sessions.service import ChatService
from sessions.types import ChatRequest, Message, SamplingParams, SharedPrompt, Tenant
from tests.fakes import open_fake_service, say, text_of
from tests.integration.index.index_servers import eventually

SIZE = 16
ALICE, BOB = Tenant("alice"), Tenant("bob")
RULES = "You are the assistant of a library, and answer in few words. " * 2
MORE = "Whoever returns a book late pays for a week, even if it is a day. " * 3


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[ChatService]:
    opened = await open_fake_service(num_blocks=512, **options)
    opened.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)  # so slow that the disk is always worth it
    try:
        yield opened
    finally:
        await opened.close()
        opened.engine.scheduler.check_integrity()


def asked(*said: str, tenant: Tenant = ALICE, system: str = RULES, salt: str | None = None) -> ChatRequest:
    """A conversation: what the user and the assistant said in turn."""
    turns = [Message("assistant" if at % 2 else "user", content) for at, content in enumerate(said)]
    params = SamplingParams(temperature=0, max_tokens=4)
    return ChatRequest((Message("system", system), *turns), params, tenant=tenant, cache_salt=salt)


async def found(service: ChatService, request: ChatRequest) -> int:
    """Tokens that the request would find, in the pool or below it."""
    return (await service.explain(request)).tiers.held


async def whole(service: ChatService, request: ChatRequest) -> int:
    """Tokens in whole blocks of the request's prompt, but for its last token."""
    return (await service.count(request) - 1) // SIZE * SIZE


# -- what another has on disk --

ONE, TWO = asked("Where is the book about the lighthouse of Alexandria?"), asked("Who was it that took the last copy?")


async def test_an_entry_s_drop_leaves_what_only_the_disk_has_of_another(tmp_path: Path) -> None:
    """Both are on disk; one is in the pool again, where nothing says that its beginning is another's too."""
    async with service(disk=(tmp_path, 2**24)) as before:
        await say(before, ONE)
        await say(before, TWO)
    async with service(disk=(tmp_path, 2**24)) as after:
        await say(after, ONE)
        (holding,), _ = await after.cache.holdings(ALICE)
        assert holding.leaf_hash is not None
        assert await after.cache.drop_path(ALICE, holding.leaf_hash) > 0
        assert await found(after, TWO) >= await whole(after, TWO)
        assert await found(after, ONE) < await whole(after, ONE)
    async with service(disk=(tmp_path, 2**24)) as again:
        assert await found(again, TWO) >= await whole(again, TWO), "and none of its files"
        assert await found(again, ONE) < await whole(again, ONE)


async def test_a_drop_on_disk_takes_its_own_blocks_of_a_file_and_what_follows_these(tmp_path: Path) -> None:
    async with service(disk=(tmp_path, 2**24)) as before:
        await say(before, ONE)
        await say(before, TWO)
    async with service(disk=(tmp_path, 2**24)) as after:
        leaves = {holding.leaf_hash for holding in await after.cache.holdings_below(ALICE)}
        assert len(leaves) == 2
        assert await after.cache.drop(ONE) > 0
        assert await found(after, TWO) >= await whole(after, TWO)
        kept = (await after.count(asked()) - 1) // SIZE * SIZE
        assert kept <= await found(after, ONE) < await whole(after, ONE)
        (two,) = [path for path in await after.cache.holdings_below(ALICE) if path.leaf_hash in leaves]
        assert await after.cache.drop_path(ALICE, two.leaf_hash) == two.num_tokens - two.num_shared_tokens > 0
        (one,) = await after.cache.holdings_below(ALICE)
        assert await after.cache.drop_path(ALICE, one.leaf_hash) == one.num_tokens
        assert await after.cache.holdings_below(ALICE) == []


async def test_an_entry_that_owns_nothing_but_its_partial_tail_can_be_dropped() -> None:
    """What was warmed ends two tokens after its text: the two paths part in the middle of a block."""
    question = ONE.messages[-1].content
    async with service() as calm:
        num_tokens = (await calm.warm(asked(question))).prompt_tokens
    question += "!" * ((SIZE // 2 - num_tokens) % SIZE)
    async with service() as one:
        longer = asked(question + " And when was it built, and by whom, and what became of it?")
        await one.warm(asked(question))
        await one.warm(longer)
        holdings, _ = await one.cache.holdings(ALICE)
        short, long = sorted(holdings, key=lambda holding: holding.num_tokens)
        assert short.leaf_hash is not None
        before = await found(one, longer)
        dropped = await one.cache.drop_path(ALICE, short.leaf_hash)
        left, _ = await one.cache.holdings(ALICE)
        assert dropped == SIZE // 2, "its partial block"
        assert [holding.leaf_hash for holding in left] == [long.leaf_hash]
        assert await found(one, longer) == before


# -- declared content --


async def test_dropping_part_of_what_is_declared_takes_the_caller_s_branches_further_on(tmp_path: Path) -> None:
    declared = SharedPrompt((Message("system", RULES + MORE),))
    question = ONE.messages[-1].content
    alice, bob = (asked(question, tenant=tenant, system=RULES + MORE) for tenant in (ALICE, BOB))
    async with service(shared_prompts=[declared], disk=(tmp_path, 2**24)) as one:
        await say(one, alice)
        told = await say(one, bob)
        shared = (len(RULES + MORE) + len("<system\n")) // SIZE * SIZE
        begun = asked(system=RULES)
        assert await one.cache.drop(begun) > 0
        assert await one.cache.holdings(ALICE) == ([], 0)
        assert await one.cache.holdings_below(ALICE) == []
        assert await found(one, alice) == shared, "the operator's stays"
        assert await found(one, bob) >= await whole(one, bob)
        assert await say(one, bob) == told
    async with service(shared_prompts=[declared], disk=(tmp_path, 2**24)) as again:
        assert await found(again, alice) == shared
        assert await found(again, bob) >= await whole(again, bob)


# -- what is under way --

LONG = replace(ONE, params=SamplingParams(temperature=0, max_tokens=80))


@pytest.mark.parametrize("what", ["everything", "the messages", "the entry"])
async def test_a_request_under_way_brings_nothing_back(what: str, tmp_path: Path) -> None:
    async with service() as calm:
        undisturbed = await say(calm, LONG)
    async with service(disk=(tmp_path, 2**24), host_bytes=2**24) as one:
        await say(one, ONE)
        (holding,), _ = await one.cache.holdings(ALICE)
        assert holding.leaf_hash is not None
        stands_still, hold = threading.Event(), threading.Event()

        def stand_still() -> None:
            stands_still.set()
            hold.wait(10)

        one.engine.call(stand_still)
        await eventually(stands_still.is_set)
        generation = await one.start(LONG)
        dropping = {
            "everything": lambda: one.cache.drop_all(ALICE),
            "the messages": lambda: one.cache.drop(ONE),
            "the entry": lambda: one.cache.drop_path(ALICE, holding.leaf_hash),  # type: ignore[arg-type]
        }[what]
        drop = asyncio.ensure_future(dropping())
        await eventually(lambda: one.engine._inbox.qsize() == 2)  # the request, and then the drop
        hold.set()
        assert await drop > 0
        assert await text_of(generation) == undisturbed, "its stream goes on"
        dropped_from = (await one.count(asked()) - 1) // SIZE * SIZE
        limit = dropped_from if what == "the messages" else 0
        assert await found(one, ONE) < await whole(one, ONE) if limit else await found(one, ONE) == 0
        assert await one.cache.holdings_below(ALICE) == []
        next_turn = asked(ONE.messages[-1].content, undisturbed, "And?")
        generation = await one.start(next_turn)
        assert generation.report.num_spliced == 0, "nor its reply"
        generation.close()
    async with service(disk=(tmp_path, 2**24)) as again:
        assert await found(again, ONE) < await whole(again, ONE)
