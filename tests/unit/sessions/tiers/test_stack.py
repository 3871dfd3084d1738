"""All tiers as one: each block where it is fastest, and none that is not worth it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sessions.hashing import HashChain
from sessions.tiers.segment_folder import SegmentFolder
from sessions.tiers.segment_store import RecentSegment, SegmentStore
from sessions.tiers.stack import TierStack, without
from sessions.tiers.tier import Surroundings, Tier
from tests.unit.sessions.tiers.segments import FORM, ROOT, kv_of, memory_store, path_of, store_path
from tests.unit.sessions.tiers.test_write_behind import Engine

LONG = tuple(range(1, 11))
HASHES, ENTRIES = path_of(*LONG)
CHAIN = HashChain(ROOT, FORM.block_size)
CHAIN.extend([token for number in LONG for token in [number] * FORM.block_size])
PROMPT = [*(token for number in LONG for token in [number] * FORM.block_size), 7]

Make = Callable[[float | None], tuple[TierStack, SegmentStore, SegmentStore]]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[TierStack] = []

    def make(prefill_rate: float | None) -> tuple[TierStack, SegmentStore, SegmentStore]:
        engine = Engine(FORM)
        around = Surroundings(FORM.block_size, engine.pool.find, engine.between_steps, lambda: prefill_rate, None)
        host, disk = memory_store(), SegmentStore(SegmentFolder(tmp_path, FORM), 2**30)
        made.append(TierStack([Tier(host, engine, around), Tier(disk, engine, around)]))
        return made[-1], host, disk

    yield make
    for stack in made:
        stack.close(10)


@pytest.mark.parametrize("num_host", [0, 3, 4, 10])
@pytest.mark.parametrize("num_local", [0, 2, 5])
async def test_the_disk_goes_on_where_the_host_ends(make: Make, num_host: int, num_local: int) -> None:
    stack, host, disk = make(None)
    store_path(host, *LONG[:num_host])
    store_path(disk, *LONG)
    held_by_host = max(0, num_host - num_local)
    assert stack.num_held(CHAIN, num_local) == {"host": held_by_host, "disk": 10 - num_local - held_by_host}
    position = num_local
    for blocks in await stack.restore(CHAIN, PROMPT, num_local):
        assert blocks.first == position
        assert (blocks.payload == kv_of(ENTRIES[blocks.first : blocks.end])).all()
        position = blocks.end
    assert position == 10
    loaded = {name: stats.loaded_tokens // FORM.block_size for name, stats in stack.stats().items()}
    assert loaded == stack.num_held(CHAIN, num_local)


async def test_what_is_not_worth_copying_from_the_host_is_not_read_from_disk(make: Make) -> None:
    stack, host, disk = make(1e12)
    store_path(host, *LONG[:6])
    store_path(disk, *LONG)
    assert await stack.restore(CHAIN, PROMPT, 5), "neither's speed is known yet"
    assert await stack.restore(CHAIN, PROMPT, 0) == ()
    store_path(host, *LONG)
    assert await stack.restore(CHAIN, PROMPT, 6) == ()


def test_each_is_told_where_it_is_fastest_and_dropped_everywhere(make: Make) -> None:
    stack, host, disk = make(None)
    store_path(host, *LONG[:6])
    store_path(disk, *LONG)
    store_path(disk, 1, 2, 99)
    assert [(found.tier, found.num_tokens // FORM.block_size) for found in stack.holdings(ROOT)] == [
        ("host", 6),
        ("disk", 3),
        ("disk", 10),
    ]
    recent = [(found.tier, found.parent, len(found.hashes)) for found in stack.recent(ROOT, 50)]
    assert sorted(recent, key=str) == sorted(
        [
            ("host", None, 4),
            ("host", HASHES[3], 2),
            ("disk", HASHES[1], 1),
            ("disk", HASHES[5], 2),
            ("disk", HASHES[7], 2),
        ],
        key=str,
    )
    assert stack.num_needed(HASHES) == 2, "the disk has a branch there"
    assert stack.chain_to(ROOT, HASHES[8]) == (ROOT, HASHES[:9])
    assert sorted(stack.drop(ROOT, HASHES[4])) == sorted(HASHES[4:]), "each once"
    assert (host.num_blocks, disk.num_blocks) == (4, 5)


def test_a_segment_without_what_others_hold_begins_after_it() -> None:
    segment = RecentSegment("disk", HASHES[1], tuple(HASHES[2:5]), 1.0)
    assert without(segment, lambda _: True) is None
    assert without(segment, lambda _: False) == segment
    assert without(segment, HASHES[:4].__contains__) == RecentSegment("disk", HASHES[3], (HASHES[4],), 1.0)


async def test_what_the_host_cannot_give_after_all_leaves_no_gap(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, host, disk = make(None)
    store_path(host, *LONG[:6])
    store_path(disk, *LONG)
    monkeypatch.setattr(host, "read", lambda *_: None)
    assert await stack.restore(CHAIN, PROMPT, 0) == ()
