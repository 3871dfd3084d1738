"""Servers as operators run them: a cluster, and an account with the least rights."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis
from index_servers import ValkeyServer, eventually, free_port

from sessions.documents import Document, Keeping, RedisDocuments
from sessions.index import Lookup, PrefixIndex
from sessions.trie import PrefixTrie, Replica, namespace_of, new_incarnation
from sessions.types import BlockHash

ROOT = BlockHash(b"root of a tenant")
NAMESPACE, FLEET = namespace_of(ROOT), namespace_of(b"model")
SHELF = "shelf"
CHAIN = [BlockHash(bytes([i]) * 16) for i in range(10)]

LEAST_RIGHTS = (
    "+evalsha +script|load +get +mget +getex +set +expire +unlink +time"
    " +zadd +zrem +zrange +zrangebyscore +zcard +hset +hdel +hgetall"
)


@pytest.fixture
def cluster_node(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A node that serves the slots of one namespace, one fleet and one shelf, as if the rest were on other nodes."""
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--dir", str(tmp_path))
    server = ValkeyServer(*options, "--cluster-port", str(free_port()))
    server.start()
    for tag in (NAMESPACE, FLEET, SHELF):
        slot = server.command("CLUSTER", "KEYSLOT", f"kv:{{{tag}}}:")
        assert isinstance(slot, int)
        server.command("CLUSTER", "ADDSLOTS", slot)
    yield server
    server.kill()


async def test_each_script_stays_in_the_slot_of_its_key(cluster_node: ValkeyServer) -> None:
    """A cluster's node refuses keys of other slots, so that each call works is the proof."""
    await eventually(lambda: "cluster_state:ok" in str(cluster_node.command("CLUSTER", "INFO")))
    incarnation = new_incarnation()
    with redis.Redis(port=cluster_node.port) as client:
        with pytest.raises(redis.RedisError, match="non local key"):
            client.eval("return redis.call('GET', 'elsewhere')", 1, f"kv:{{{NAMESPACE}}}:n:")
        trie = PrefixTrie(client)
        assert trie.insert(NAMESPACE, CHAIN, incarnation, ttl_s=60) == 10
        assert trie.insert(NAMESPACE, [*CHAIN[:5], BlockHash(b"x" * 16)], incarnation, ttl_s=60) == 1
        assert trie.cut(NAMESPACE, CHAIN, 7, incarnation) == 1
        assert trie.lookup(NAMESPACE, CHAIN, ttl_s=60).holders[incarnation].num_blocks == 7
        assert trie.beat(FLEET, incarnation, Replica("a"), lease_s=5).live == {incarnation}
        trie.leave(FLEET, incarnation)
        assert trie.replicas(FLEET) == {}


async def eventually_async(ask: Callable[[], Awaitable[object]], expected: object) -> None:
    async with asyncio.timeout(5):
        while await ask() != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_least_rights_are_enough() -> None:
    server = ValkeyServer()
    server.start()
    server.command("ACL", "SETUSER", "index", "on", ">pass", "resetkeys", "~kv:*", "nocommands", *LEAST_RIGHTS.split())
    url = f"redis://index:pass@127.0.0.1:{server.port}"
    holder, asker = (PrefixIndex(url, fleet=b"model", resync_source=list) for _ in range(2))
    try:
        for index in (holder, asker):
            index.start()
        holder.publish(ROOT, CHAIN)
        holder.evicted(CHAIN[:6:-1])
        await eventually(asker.should_ask)
        await eventually(lambda: holder.stats().cuts + holder.stats().published >= 1)
        assert await asker.lookup(ROOT, CHAIN) == Lookup(0, holder.incarnation, 7)
        holder.keep_reply(ROOT, b"key", b"record", salted_of=CHAIN[0])
        await eventually_async(lambda: asker.fetch_replies(ROOT, [b"key"]), [b"record"])
        holder.forget_replies(CHAIN[0], and_salts=True)
        await eventually_async(lambda: asker.fetch_replies(ROOT, [b"key"]), [None])
    finally:
        for index in (holder, asker):
            index.stop()
        server.kill()
    assert holder.stats().errors == asker.stats().errors == 0


async def test_the_least_rights_are_enough_for_documents() -> None:
    server = ValkeyServer()
    server.start()
    rights = "+evalsha +script|load +mget +getrange +set +expire +del +time +zadd +zrem +zrange +zremrangebyscore"
    server.command("ACL", "SETUSER", "store", "on", ">pass", "resetkeys", "~doc:*", "nocommands", *rights.split())
    try:
        with redis.Redis(port=server.port, username="store", password="pass") as client:
            use_documents(client)
    finally:
        server.kill()


async def test_documents_work_in_a_cluster(cluster_node: ValkeyServer) -> None:
    await eventually(lambda: "cluster_state:ok" in str(cluster_node.command("CLUSTER", "INFO")))
    with redis.Redis(port=cluster_node.port) as client:
        use_documents(client)


def use_documents(client: redis.Redis) -> None:
    """Every command, as any deployment must take it."""
    documents, keeping = RedisDocuments(client), Keeping(most=2)
    first, second = Document.new(b"1"), Document.new(b"2")
    assert documents.put(SHELF, "a", first, keeping, b"", [])
    assert documents.put(SHELF, "a", second, keeping, first.version, [])
    assert not documents.put(SHELF, "a", first, keeping, first.version, [])
    assert documents.put(SHELF, "b", first, keeping, b"", ["a"]) and documents.put(SHELF, "c", first, keeping, b"", [])
    assert documents.fetch(SHELF, ["a", "b", "c"]) == [None, first, first]
    assert documents.delete(SHELF, "b") and not documents.delete(SHELF, "b")
