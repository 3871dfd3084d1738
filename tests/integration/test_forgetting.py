"""What a tenant drops is gone wherever it was: pool, disk, process and Redis, under each salt, and nobody else's is."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from sessions.index import IndexSettings, forgetting
from sessions.index.forgetting import Forgetting
from sessions.parts import IndexOptions
from sessions.service import ChatService
from sessions.trie import FORGET_AT_ONCE, Namespace, PrefixTrie, namespace_of
from sessions.types import ChatRequest, Message, SamplingParams, Tenant
from tests.fakes import open_fake_service, say
from tests.integration.index.index_servers import ValkeyServer, eventually

QUESTION = "What is it, and why, and who was it that told you so long ago?"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[ChatService]:
    opened = await open_fake_service(num_blocks=256, **options)
    opened.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)  # so slow that the disk is always worth it
    try:
        yield opened
    finally:
        await opened.close()


def asked(tenant: str, salt: str | None = None, *said: str) -> ChatRequest:
    contents = (QUESTION, *said)
    messages = [Message("assistant" if at % 2 else "user", content) for at, content in enumerate(contents)]
    return ChatRequest(
        tuple(messages), SamplingParams(temperature=0, max_tokens=6), tenant=Tenant(tenant), cache_salt=salt
    )


def records(server: ValkeyServer) -> int:
    """Of replies; not the marks of `sightings.py`, which are 24 bytes."""
    with redis.Redis(port=server.port) as client:
        return sum(client.strlen(key) != 24 for key in client.keys("kv:*}:r:*"))  # type: ignore[union-attr]


async def test_dropping_everything_deletes_the_replies_in_redis_of_every_salt(valkey: ValkeyServer) -> None:
    index = IndexOptions("redis", valkey.url)
    async with service(index=index) as one:
        await eventually(lambda: one.index.state == "redis")
        reply = await say(one, asked("alice"))
        for tenant, salt in (("alice", "one"), ("alice", "two"), ("bob", None), ("bob", "one")):
            assert await say(one, asked(tenant, salt)) == reply
        await eventually(lambda: records(valkey) == 5)
        await one.cache.drop_all(Tenant("alice"))
        await eventually(lambda: records(valkey) == 2)
        for tenant, salt, spliced in (("alice", None, 0), ("alice", "one", 0), ("bob", None, 1), ("bob", "one", 1)):
            generation = await one.start(asked(tenant, salt, reply, "And?"))
            assert generation.report.num_spliced == spliced, (tenant, salt)
            generation.close()


async def test_a_fresh_process_forgets_what_an_earlier_one_kept(valkey: ValkeyServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"index": IndexOptions("redis", valkey.url), "disk": (tmp_path, 2**24)}
    async with service(**options) as before:
        await eventually(lambda: before.index.state == "redis")
        for tenant, salt in (("alice", None), ("alice", "one"), ("bob", "one")):
            await say(before, asked(tenant, salt))
        await eventually(lambda: records(valkey) == 3)
    async with service(**options) as after:
        await eventually(lambda: after.index.state == "redis")
        assert (await after.explain(asked("alice", "one"))).tiers.disk > 0
        on_disk = (await after.cache.totals(Tenant("alice"))).below["disk"].num_tokens
        assert await after.cache.drop_all(Tenant("alice")) == on_disk > 0, "the pool has nothing"
        await eventually(lambda: records(valkey) == 1)
        for tenant, salt, is_held in (("alice", None, False), ("alice", "one", False), ("bob", "one", True)):
            assert ((await after.explain(asked(tenant, salt))).tiers.disk > 0) is is_held


async def test_what_only_the_disk_has_is_listed_and_dropped_by_its_tenant(tmp_path: Path) -> None:
    disk = (tmp_path, 2**24)
    async with service(disk=disk) as before:
        for tenant, salt in (("alice", None), ("alice", "one"), ("bob", None)):
            await say(before, asked(tenant, salt))
        assert await before.cache.holdings_below(Tenant("alice")) == [], "all of it is in the pool"
    async with service(disk=disk) as after:
        alice, bob = Tenant("alice"), Tenant("bob")
        found = await after.cache.holdings_below(alice)
        assert len(found) == 2 and all(holding.num_tokens >= len(QUESTION) // 16 * 16 for holding in found)
        totals = await after.cache.totals(alice)
        assert (
            totals.below["disk"].num_tokens == sum(holding.num_tokens for holding in found) and totals.pool_tokens == 0
        )
        assert await after.cache.drop_path(bob, found[0].leaf_hash) == 0
        assert await after.cache.drop_path(alice, found[0].leaf_hash) == found[0].num_tokens
        left = await after.cache.holdings_below(alice)
        assert [holding.leaf_hash for holding in left] == [found[1].leaf_hash]
        assert len(await after.cache.holdings_below(bob)) == 1


async def test_dropping_messages_deletes_the_replies_under_their_root_alone(valkey: ValkeyServer) -> None:
    async with service(index=IndexOptions("redis", valkey.url)) as one:
        await eventually(lambda: one.index.state == "redis")
        for salt in (None, "one", "two"):
            await say(one, asked("alice", salt))
        await eventually(lambda: records(valkey) == 3)
        assert await one.cache.drop(asked("alice", "one")) > 0
        await eventually(lambda: records(valkey) == 2)
        holdings, _ = await one.cache.holdings(Tenant("alice"))
        leaf = next(holding.leaf_hash for holding in holdings if holding.root == one.root_of("alice", None))
        assert leaf is not None and await one.cache.drop_path(Tenant("alice"), leaf) > 0
        await eventually(lambda: records(valkey) == 1)


async def test_what_is_dropped_while_redis_is_away_is_deleted_when_it_is_back(valkey: ValkeyServer) -> None:
    async with service(index=IndexOptions("redis", valkey.url)) as one:
        await eventually(lambda: one.index.state == "redis")
        await say(one, asked("alice"))
        await eventually(lambda: records(valkey) == 1)
        valkey.freeze()
        await eventually(lambda: one.index.state == "down")
        await one.cache.drop_all(Tenant("alice"))
        valkey.thaw()
        await eventually(lambda: records(valkey) == 0)
        assert one.index.state == "redis", "it was deleted by this process, once Redis was back"


async def test_a_set_of_records_is_forgotten_a_few_at_a_time_and_ends_with_them(valkey: ValkeyServer) -> None:
    with redis.Redis(port=valkey.port) as client:
        trie, namespace = PrefixTrie(client), namespace_of(b"root of a tenant")
        total = 2 * FORGET_AT_ONCE + 3
        for number in range(total):
            trie.keep_reply(namespace, b"%d" % number, b"record", ttl_s=60)
        assert 50 < client.ttl(f"kv:{{{namespace}}}:rs") <= 60  # type: ignore[operator]
        assert [trie.forget_replies(namespace) for _ in range(3)] == [3 + FORGET_AT_ONCE, 3, 0]
        assert client.dbsize() == 0
        trie.keep_reply(namespace, b"long", b"record", ttl_s=600)
        trie.keep_reply(namespace, b"short", b"record", ttl_s=60)
        assert 590 < client.ttl(f"kv:{{{namespace}}}:rs") <= 600, "with the last"  # type: ignore[operator]


async def test_what_only_the_disk_has_is_in_its_tenant_s_picture(tmp_path: Path) -> None:
    disk, alice, bob = (tmp_path, 2**24), Tenant("alice"), Tenant("bob")
    async with service(disk=disk) as before:
        for tenant, salt in (("alice", None), ("alice", "one"), ("bob", None)):
            await say(before, asked(tenant, salt))
        drawn = await before.cache.picture(alice, 50)
        assert drawn.tiers == ["pool"] * 2, "all of it is in the pool"
    async with service(disk=disk) as after:
        drawn = await after.cache.picture(alice, 50)
        held = await after.cache.holdings_below(alice)
        assert (drawn.tiers, drawn.num_left_out) == (["disk"] * 2, 0)
        assert sorted(run.num_tokens for run in drawn.runs) == sorted(holding.num_tokens for holding in held)
        assert len((await after.cache.picture(bob, 50)).runs) == 1
        await say(after, asked("alice"))
        drawn = await after.cache.picture(alice, 50)
        assert drawn.tiers == ["pool", "disk"], "what was restored is in the pool"


async def test_a_process_that_ends_while_redis_is_away_leaves_it_to_the_next(
    valkey: ValkeyServer, tmp_path: Path
) -> None:
    index = IndexOptions("redis", valkey.url, client=IndexSettings(forgetting=tmp_path / "forgetting"))
    async with service(index=index) as one:
        await eventually(lambda: one.index.state == "redis")
        for tenant, salt in (("alice", None), ("alice", "one"), ("bob", None)):
            await say(one, asked(tenant, salt))
        await eventually(lambda: records(valkey) == 3)
        valkey.freeze()
        await eventually(lambda: one.index.state == "down")
        for _ in range(3):
            await one.cache.drop_all(Tenant("alice"))
        await eventually(lambda: len(list((tmp_path / "forgetting").iterdir())) == 2)  # replies, and sightings
    valkey.thaw()
    async with service(index=index):
        await eventually(lambda: records(valkey) == 1)
        await eventually(lambda: not list((tmp_path / "forgetting").iterdir()))
        assert records(valkey) == 1, "bob's stays"


def test_what_waits_to_be_forgotten_is_bounded_and_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MAX_JOBS", 3)
    jobs = Forgetting(tmp_path)
    for number in (1, 2, 2, 3, 4):
        jobs.add(Namespace(str(number)), and_salts=number == 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4.salts"]
    again = Forgetting(tmp_path)
    assert len(again) == 3
    while (job := again.first()) is not None:
        again.done(job)
    assert list(tmp_path.iterdir()) == []
