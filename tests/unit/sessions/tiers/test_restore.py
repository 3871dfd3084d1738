"""Reading back: shared, bounded in memory and in time, and never more than is right."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from sessions.hashing import HashChain, SharedContent
from sessions.tiers import restore
from sessions.tiers.restore import Restorer
from sessions.tiers.segment import Payload
from sessions.tiers.segment_folder import SegmentFolder
from sessions.tiers.segment_memory import SegmentMemory
from sessions.tiers.segment_store import SegmentStore
from sessions.types import BlockHash
from tests.unit.sessions.tiers.segments import CAPACITY, FORM, ROOT, SHAPE, kv_of, memory_store, path_of, store_path

LONG = tuple(range(1, 11))
HASHES, ENTRIES = path_of(*LONG)
TOKEN_IDS = [token for number in LONG for token in [number] * FORM.block_size]
PROMPT = [*TOKEN_IDS, 7]
CHAIN = HashChain(ROOT, FORM.block_size)
CHAIN.extend(TOKEN_IDS)
SHARED_ROOT = BlockHash(b"S" * 16)


ON_DISK = pytest.mark.parametrize("store", ["disk"], indirect=True)


@pytest.fixture(params=["disk", "host"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 2**30) if request.param == "disk" else memory_store()
    store_path(store, *LONG)
    return store


@pytest.fixture
async def restorer(store: SegmentStore) -> AsyncIterator[Restorer]:
    restorer = Restorer(store, lambda: None)
    yield restorer
    restorer.close()


async def test_whole_blocks_come_back_from_where_the_pool_ends(restorer: Restorer) -> None:
    for num_local in range(len(LONG) + 1):
        restored = await restorer.restore(CHAIN, PROMPT, num_local)
        position = num_local
        for blocks in restored:
            assert blocks.first == position
            assert (blocks.payload == kv_of(ENTRIES[blocks.first : blocks.end])).all()
            position = blocks.end
        assert position == len(LONG)


async def test_the_last_token_is_left_to_compute(restorer: Restorer) -> None:
    restored = await restorer.restore(CHAIN, TOKEN_IDS, 0)
    assert restored[-1].end == len(LONG) - 1


async def test_another_root_finds_nothing(restorer: Restorer) -> None:
    other = HashChain(HASHES[0], FORM.block_size)
    other.hashes = HASHES
    assert await restorer.restore(other, PROMPT, 0) == ()


@pytest.mark.parametrize(("declared", "num_local"), [(1, 0), (3, 0), (4, 0), (5, 2), (5, 7), (5, 5)])
async def test_a_prompt_that_begins_with_shared_content_is_read_from_two_chains(
    tmp_path: Path, declared: int, num_local: int
) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 2**30)
    shared = path_of(*LONG[:declared], root=SHARED_ROOT)
    chain = HashChain(ROOT, FORM.block_size, SharedContent.of(SHARED_ROOT, [shared[0]]))
    chain.extend(TOKEN_IDS)
    _, own = path_of(*LONG[declared:], root=chain.branch)
    assert [entry.block_hash for entry in (*shared[1], *own)] == chain.hashes
    store_path(store, *LONG[declared:], root=chain.branch)
    restorer = Restorer(store, lambda: None)
    if num_local < declared:
        assert await restorer.restore(chain, PROMPT, num_local) == (), "what is before it is not there"
    store_path(store, *LONG[:declared], root=SHARED_ROOT)
    restored = await restorer.restore(chain, PROMPT, num_local)
    assert [blocks.first for blocks in restored[1:]] == [blocks.end for blocks in restored[:-1]]
    assert (restored[0].first, restored[-1].end) == (num_local, len(LONG))
    for blocks in restored:
        assert (blocks.payload == kv_of([*shared[1], *own][blocks.first : blocks.end])).all()
    restorer.close()


async def test_a_hash_that_collides_is_a_miss(restorer: Restorer) -> None:
    """What is stored has token ids, which are compared with the prompt's own."""
    forged = list(PROMPT)
    forged[5 * FORM.block_size] += 1
    restored = await restorer.restore(CHAIN, forged, 0)
    assert restored[-1].end == CAPACITY
    assert restorer._store.num_corrupt == 1


async def test_requests_that_want_the_same_share_one_read(restorer: Restorer) -> None:
    both = await asyncio.gather(*(restorer.restore(CHAIN, PROMPT, 0) for _ in range(2)))
    assert [blocks.payload is twin.payload for blocks, twin in zip(*both, strict=True)] == [True] * 3


@ON_DISK
async def test_memory_in_flight_is_bounded_and_given_back(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "MAX_BYTES_IN_FLIGHT", 2 * CAPACITY * FORM.stride)
    held = await restorer.restore(CHAIN, PROMPT, 0)
    assert held[-1].end == 2 * CAPACITY
    assert await restorer.restore(CHAIN, PROMPT, 0) == ()
    del held
    gc.collect()
    again = await restorer.restore(CHAIN, PROMPT, 0)
    assert again[-1].end == 2 * CAPACITY


async def test_recomputing_is_chosen_where_it_is_faster(store: SegmentStore) -> None:
    restorer = Restorer(store, lambda: 1e12)
    assert await restorer.restore(CHAIN, PROMPT, 0), "the disk's speed is not known yet"
    assert restorer.read_rate.value is not None
    assert await restorer.restore(CHAIN, PROMPT, 0) == ()
    restorer.close()


@ON_DISK
async def test_a_disk_that_hangs_is_not_waited_for(
    restorer: Restorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe without a writer stands for it: opening it does not return."""
    monkeypatch.setattr(restore, "LONGEST_WAIT_S", 0.05)
    path = tmp_path / FORM.namespace.hex() / HASHES[CAPACITY].hex()
    path.unlink()
    os.mkfifo(path)
    restored = await restorer.restore(CHAIN, PROMPT, 0)
    assert restored[-1].end == CAPACITY, "what came before is used"
    assert await restorer.restore(CHAIN, PROMPT, CAPACITY) == ()
    os.close(await asyncio.to_thread(os.open, path, os.O_WRONLY))
    async with asyncio.timeout(20):
        while restorer._loading:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@ON_DISK
async def test_a_file_that_cannot_be_read_is_a_miss(restorer: Restorer, tmp_path: Path) -> None:
    path = tmp_path / FORM.namespace.hex() / HASHES[CAPACITY].hex()
    path.unlink()
    path.mkdir()
    restored = await restorer.restore(CHAIN, PROMPT, 0)
    assert restored[-1].end == CAPACITY
    assert restorer.num_errors == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory"), ValueError("of ours")])
async def test_without_memory_to_read_into_it_is_a_miss_and_takes_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "MAX_BYTES_IN_FLIGHT", 2 * CAPACITY * SHAPE.stride)
    fails = False

    def new_rows(count: int, size: int) -> Payload:
        if fails:
            raise error
        return np.zeros((count, size), np.uint8)

    store = SegmentStore(SegmentMemory(SHAPE, 2**30, new_rows), 2**30)
    store_path(store, *LONG)
    restorer = Restorer(store, lambda: None)
    fails = True
    for num_failed in (2, 4):
        assert await restorer.restore(CHAIN, PROMPT, 0) == ()
        assert restorer.num_errors == num_failed, "nothing of the bound is lost: both pieces are tried again"
    fails = False
    restored = await restorer.restore(CHAIN, PROMPT, 0)
    assert restored[-1].end == 2 * CAPACITY
    restorer.close()


async def test_a_closed_one_finds_nothing(restorer: Restorer) -> None:
    restorer.close()
    assert await restorer.restore(CHAIN, PROMPT, 0) == ()
