"""What replicas on a healthy server see of each other: claims, evictions, deaths, resets, repairs."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from index_fleet import BUDGET_S, FLEET, QUICK, ROOT, Fleet, ReplicaUnderTest, chain, running
from index_servers import ValkeyServer, eventually

from sessions.index import IndexSettings, Lookup, PrefixIndex, open_index
from sessions.trie import Incarnation, PrefixTrie, Replica, namespace_of, new_incarnation
from sessions.types import BlockHash


@contextlib.contextmanager
def third_replica(server: ValkeyServer) -> Iterator[tuple[Incarnation, Callable[[], None]]]:
    """A replica without threads, so that it can die: it lives only when told to beat."""
    incarnation = new_incarnation()
    with redis.Redis(port=server.port) as client:
        trie = PrefixTrie(client)

        def beat() -> None:
            trie.beat(namespace_of(FLEET), incarnation, Replica("third"), lease_s=QUICK.lease_s)

        beat()
        trie.insert(namespace_of(ROOT), chain("third's", 30), incarnation, ttl_s=60)
        yield incarnation, beat


async def test_the_dead_are_ignored_once_their_lease_is_over(fleet: Fleet, server: ValkeyServer) -> None:
    async def sees_third(expected: Lookup) -> None:
        deadline = time.monotonic() + 5
        while await fleet.ask("third's") != expected:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    with third_replica(server) as (incarnation, beat):
        await sees_third(Lookup(0, incarnation, 30))
        await sees_third(Lookup(0, None, 0))
        beat()
        await sees_third(Lookup(0, incarnation, 30))


async def test_alone_nobody_is_asked(fleet: Fleet) -> None:
    assert fleet.b.index.should_ask()
    fleet.a.index.stop(1.0)
    await eventually(lambda: not fleet.b.index.should_ask(), within_s=QUICK.lease_s)
    lookups = fleet.b.index.stats().lookups
    assert await fleet.ask("old") is None
    assert fleet.b.index.stats().lookups == lookups


async def test_the_deepest_other_and_our_own_share_are_told(fleet: Fleet) -> None:
    fleet.b.hold("old", 20)
    await eventually(lambda: fleet.b.index.stats().published >= 1)
    assert await fleet.ask("old") == Lookup(20, fleet.a.index.incarnation, 50)


async def test_an_emptied_pool_takes_its_claims_along(fleet: Fleet) -> None:
    fleet.a.pool.clear()
    fleet.a.index.reset()
    await fleet.sees("old", 0)
    fleet.a.hold("old", 3)
    await fleet.sees("old", 3)


async def test_evictions_are_told(fleet: Fleet) -> None:
    fleet.a.evict("old", 20)
    await fleet.sees("old", 30)
    fleet.a.evict("old", 30)
    await fleet.sees("old", 0)


async def test_a_thrashing_pool_still_gets_its_claims_through(fleet: Fleet) -> None:
    """2,000 evictions among 100 claims: every claim arrives, and the evictions of a branch are one cut."""
    before = fleet.a.index.stats()
    for i in range(100):
        fleet.a.hold(f"thrash {i}", 40)
        fleet.a.evict(f"thrash {i}", 20)
    await fleet.sees("thrash 99", 20)
    await eventually(lambda: fleet.a.index.stats().cuts - before.cuts >= 1)
    for i in range(0, 100, 9):
        await fleet.sees(f"thrash {i}", 20)
    after = fleet.a.index.stats()
    assert after.dropped == 0
    assert after.published - before.published == 100
    assert after.cuts - before.cuts <= 100


async def test_more_evictions_than_can_wait_cost_the_incarnation(server: ValkeyServer) -> None:
    few = IndexSettings(timeout_s=BUDGET_S, beat_s=0.1, lease_s=0.6, cut_delay_s=60.0, max_evictions=10)
    async with running(Fleet(server.url)) as fleet:
        fleet.a.index.stop(1.0)
        fleet.a = ReplicaUnderTest(server.url, few)
        fleet.a.index.start()
        fleet.a.hold("old", 50)
        await fleet.sees("old", 50)
        before = fleet.a.index.incarnation
        fleet.a.evict("old", 20)
        await eventually(lambda: fleet.a.index.incarnation != before)
        await fleet.sees("old", 30)


async def test_a_source_that_fails_is_asked_again(server: ValkeyServer) -> None:
    failures = [RuntimeError("the engine is stopping"), KeyError("and again")]

    def source() -> list[tuple[BlockHash, list[BlockHash]]]:
        if failures:
            raise failures.pop()
        return [(ROOT, chain("old", 50))]

    async with running(Fleet(server.url)) as fleet:
        fleet.a.index.stop()
        fleet.a.index = PrefixIndex(server.url, fleet=FLEET, resync_source=source, settings=QUICK)
        fleet.a.index.start()
        await fleet.sees("old", 50)
        assert failures == [] and fleet.a.index.stats().errors == 0


async def test_a_claim_that_is_false_is_withdrawn_when_it_is_seen(fleet: Fleet, server: ValkeyServer) -> None:
    with redis.Redis(port=server.port) as client:
        false_claim = chain("old", 80)
        PrefixTrie(client).insert(namespace_of(ROOT), false_claim, fleet.a.index.incarnation, ttl_s=60)
    assert await fleet.ask("old") == Lookup(0, fleet.a.index.incarnation, 80)
    seen = await fleet.a.index.lookup(ROOT, chain("old", 100))
    assert seen is not None and seen.num_own_blocks == 80
    await fleet.sees("old", 50)


async def test_many_lookups_at_once_are_all_answered(fleet: Fleet) -> None:
    lookups = await asyncio.gather(*(fleet.b.index.lookup(ROOT, chain("old", 100)) for _ in range(20)))
    assert set(lookups) == {Lookup(0, fleet.a.index.incarnation, 50)}


async def test_a_cancelled_lookup_harms_nobody(fleet: Fleet) -> None:
    for _ in range(20):
        task = asyncio.create_task(fleet.b.index.lookup(ROOT, chain("old", 100)))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await fleet.sees("old", 50)


async def test_off_is_off() -> None:
    index = open_index("off", None, fleet=FLEET, resync_source=list)
    index.start()
    index.publish(ROOT, chain("x", 3))
    index.evicted(chain("x", 3))
    index.reset()
    assert await index.lookup(ROOT, chain("x", 3)) is None
    assert (index.state, index.should_ask(), index.stats().published) == ("off", False, 0)
    index.stop()


@pytest.mark.parametrize("mode, url", [("redis", None), ("redis", "http://nowhere"), ("auto", "no url")])
def test_a_url_that_is_none_is_refused(mode: str, url: str | None) -> None:
    with pytest.raises(ValueError, match="URL"):
        open_index(mode, url, fleet=FLEET, resync_source=list)  # type: ignore[arg-type]


async def test_redis_is_told_hashes_only(fleet: Fleet, server: ValkeyServer) -> None:
    """Keys hold a digest of the root, never the root; nothing but the lease keys lives for ever."""
    with redis.Redis(port=server.port) as client:
        fleet_prefix = f"kv:{{{namespace_of(FLEET)}}}:".encode()
        for key in client.scan_iter():
            assert ROOT not in key and FLEET not in key
            assert key.startswith(fleet_prefix) or client.ttl(key) > 0
