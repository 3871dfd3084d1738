"""What is stored behaves alike in a Redis and in this process; and what a Redis that is away does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from index_servers import ValkeyServer

from sessions.documents import LOCAL_BYTES, Document, Documents, Keeping, LocalDocuments
from sessions.errors import StoreUnavailable
from sessions.index import IndexSettings, PrefixIndex
from sessions.index.remote_documents import RemoteDocuments
from sessions.index.settings import connect

Make = Callable[[Keeping], Documents]


@pytest.fixture(params=["local", "redis"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Makes a store of one kind; all that one test makes have the same data."""
    if request.param == "local":
        yield LocalDocuments
        return
    server: ValkeyServer = request.getfixturevalue("server")
    opened: list[RemoteDocuments] = []

    def remote(keeping: Keeping) -> Documents:
        settings = IndexSettings(documents_timeout_s=5)
        opened.append(RemoteDocuments(connect(server.url, 5), settings, keeping))
        opened[-1].start()
        return opened[-1]

    yield remote
    for documents in opened:
        documents.stop(1)


async def contents(documents: Documents, shelf: str, *names: str) -> list[bytes | None]:
    return [found and found.content for found in await documents.fetch(shelf, names)]


async def test_what_is_put_is_fetched_in_order(make: Make) -> None:
    documents = make(Keeping())
    for name in "ab":
        assert await documents.put("s", name, Document.new(name.encode()))
    assert await contents(documents, "s", "b", "none", "a") == [b"b", None, b"a"]
    assert await contents(documents, "other", "a") == [None]
    assert await documents.fetch("s", []) == []


async def test_deleting_says_whether_it_was_there(make: Make) -> None:
    documents = make(Keeping())
    await documents.put("s", "a", Document.new(b"a"))
    assert not await documents.delete("other", "a")
    assert await documents.delete("s", "a")
    assert not await documents.delete("s", "a")
    assert await contents(documents, "s", "a") == [None]


async def test_a_version_guards_a_change(make: Make) -> None:
    documents = make(Keeping())
    first, second, lost = (Document.new(content) for content in (b"1", b"2", b"3"))
    assert not await documents.put("s", "a", first, version=b"x" * 8)
    assert await documents.put("s", "a", first)
    assert await documents.put("s", "a", second, version=first.version)
    assert not await documents.put("s", "a", lost, version=first.version)
    assert await documents.fetch("s", ["a"]) == [second]


async def test_past_the_bound_the_least_recently_used_go(make: Make) -> None:
    documents = make(Keeping(most=3))
    for name in "abc":
        await documents.put("s", name, Document.new(name.encode()))
    await documents.put("other", "a", Document.new(b"o"))
    await documents.put("s", "d", Document.new(b"d"), renew=["a", "gone"])
    assert await contents(documents, "s", "a", "b", "c", "d", "gone") == [b"a", None, b"c", b"d", None]
    assert await contents(documents, "other", "a") == [b"o"]


async def test_what_builds_on_more_than_the_bound_outlives_it(make: Make) -> None:
    documents = make(Keeping(most=3))
    for name in "bcd":
        await documents.put("s", name, Document.new(name.encode()))
    await documents.put("s", "a", Document.new(b"a"), renew=["b", "c", "d"])
    assert (await contents(documents, "s", "a", "b", "c", "d"))[::3] == [b"a", b"d"]


async def test_what_is_built_on_lives_on_and_the_rest_expires(make: Make) -> None:
    documents = make(Keeping(ttl_s=1))
    for name in "ab":
        await documents.put("s", name, Document.new(name.encode()))

    async def renewed() -> list[bytes | None]:
        await documents.put("s", "c", Document.new(b"c"), renew=["a"])
        return await contents(documents, "s", "a", "b")

    ends_at = time.monotonic() + 5
    while await renewed() != [b"a", None]:
        assert time.monotonic() < ends_at, "the one that is not built on expires alone"
        await asyncio.sleep(0.05)


async def test_this_process_holds_so_many_bytes_at_most() -> None:
    documents = LocalDocuments(Keeping(), max_bytes=5_000)
    for number in range(20):
        await documents.put(f"shelf {number % 3}", str(number), Document.new(bytes(1_000)))
        assert documents.num_bytes <= 5_000
    assert await contents(documents, "shelf 1", "19") == [bytes(1_000)]
    for number in range(20):
        await documents.delete(f"shelf {number % 3}", str(number))
    assert documents.num_bytes == 0 and LOCAL_BYTES > 5_000


# -- a Redis that is away --


@pytest.fixture
async def remote(server: ValkeyServer) -> AsyncIterator[RemoteDocuments]:
    settings = IndexSettings(documents_timeout_s=0.2)
    documents = RemoteDocuments(connect(server.url, 0.2), settings, Keeping())
    documents.start()
    await documents.put("s", "a", Document.new(b"a"))
    yield documents
    documents.stop(1)


Call = Callable[[RemoteDocuments], Awaitable[object]]
CALLS: list[Call] = [
    lambda documents: documents.fetch("s", ["a"]),
    lambda documents: documents.put("s", "b", Document.new(b"b")),
    lambda documents: documents.delete("s", "b"),
]


async def is_back(documents: RemoteDocuments) -> bool:
    try:
        return await contents(documents, "s", "a") in ([b"a"], [None])
    except StoreUnavailable:
        return False


@pytest.mark.parametrize("call", CALLS)
async def test_a_frozen_redis_is_unavailable_within_the_budget(
    server: ValkeyServer, remote: RemoteDocuments, call: Call
) -> None:
    server.freeze()
    try:
        for _ in range(5):
            began_at = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call(remote)
            assert time.monotonic() - began_at < 0.4
    finally:
        server.thaw()
    ends_at = time.monotonic() + 5
    while not await is_back(remote):
        assert time.monotonic() < ends_at
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("call", CALLS)
async def test_a_redis_that_is_gone_is_unavailable_at_once(
    server: ValkeyServer, remote: RemoteDocuments, call: Call
) -> None:
    server.kill()
    began_at = time.monotonic()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await call(remote)
    assert time.monotonic() - began_at < 1


async def test_a_redis_that_refuses_writes_can_still_be_read(server: ValkeyServer, remote: RemoteDocuments) -> None:
    server.command("CONFIG", "SET", "maxmemory", 1)
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            await remote.put("s", "b", Document.new(bytes(1000)))
        assert await contents(remote, "s", "a") == [b"a"]


async def test_an_index_without_a_server_or_told_to_store_nothing_has_no_documents(server: ValkeyServer) -> None:
    nothing = IndexSettings(keeping=None)
    for index in (
        PrefixIndex(None, fleet=b"f", resync_source=list),
        PrefixIndex(server.url, fleet=b"f", resync_source=list, settings=nothing),
    ):
        assert index.documents is None
