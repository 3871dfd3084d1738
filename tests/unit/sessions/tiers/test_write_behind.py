"""What reaches a tier is what the pool held, whatever happens to the pool meanwhile."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from sessions.engine.block import Block
from sessions.engine.block_pool import BlockPool
from sessions.errors import ModelRefused
from sessions.tiers import write_behind
from sessions.tiers.segment import Anchor, Payload
from sessions.tiers.segment_file import SegmentFormat
from sessions.tiers.segment_folder import SegmentFolder
from sessions.tiers.segment_store import SegmentStore
from sessions.tiers.write_behind import WriteBehind
from sessions.types import BlockHash
from tests.contract.conftest import eventually
from tests.unit.sessions.tiers.segments import CAPACITY, FORM, ROOT, files_under, kv_of, memory_store, path_of, readable

NUM_BLOCKS = 12
DEADLINE_S = 10
ANCHOR = Anchor(ROOT, ROOT, ROOT)


class Engine:
    """A real pool whose KV is bytes. `during_copy` runs in the middle of the writer's copy."""

    def __init__(self, form: SegmentFormat) -> None:
        self.pool = BlockPool(NUM_BLOCKS, form.block_size)
        self.block_bytes = form.block_bytes
        self.layout = form.layout
        self.kv: dict[int, Payload] = {}
        self.during_copy: Callable[[], None] = lambda: None
        self.after_look: Callable[[], None] = lambda: None
        self.is_stopped = False
        self.now = 0.0

    def host_rows(self, num_rows: int, row_bytes: int) -> Payload:
        return np.zeros((num_rows, row_bytes), np.uint8)

    def read_blocks(self, block_ids: Sequence[int], out: Payload) -> None:
        half = len(block_ids) // 2
        for row, block_id in zip(out[:half], block_ids[:half], strict=True):
            row[:] = self.kv[block_id]
        self.during_copy()
        for row, block_id in zip(out[half:], block_ids[half:], strict=True):
            row[:] = self.kv[block_id]

    def between_steps(self, function: Callable[[], bool]) -> "Future[bool]":
        future: Future[bool] = Future()
        if self.is_stopped:
            future.set_exception(RuntimeError("The engine has stopped."))
        else:
            future.set_result(function())
            self.after_look()
        return future

    def compute(self, *branches: int) -> list[BlockHash]:
        """A request that computes the whole path and is gone."""
        self.now += 1
        hashes, entries = path_of(*branches)
        blocks: list[Block] = []
        for branch, block_hash, payload in zip(branches, hashes, kv_of(entries), strict=True):
            found = self.pool.find(block_hash)
            if found is not None:
                self.pool.touch([found])
                blocks.append(found)
                continue
            (block,) = self.pool.allocate(1, self.now)
            self.kv[block.id] = payload
            parent = blocks[-1] if blocks else None
            blocks.append(self.pool.register_full(block, ROOT, parent, block_hash, (branch,) * FORM.block_size))
        self.pool.free(blocks, self.now)
        return hashes


@pytest.fixture(params=["disk", "host"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentStore:
    return SegmentStore(SegmentFolder(tmp_path, FORM), 2**30) if request.param == "disk" else memory_store()


@pytest.fixture
def engine() -> Engine:
    return Engine(FORM)


@pytest.fixture
def writer(store: SegmentStore, engine: Engine) -> Iterator[WriteBehind]:
    writer = WriteBehind(store, engine, engine.pool.find, engine.between_steps)
    yield writer
    writer.close(DEADLINE_S)
    store.check_integrity()


def test_a_turn_is_written_and_the_next_adds_only_its_own(
    writer: WriteBehind, engine: Engine, store: SegmentStore
) -> None:
    for end in (3, 6, 9):
        path = range(1, end + 1)
        writer.offer(ANCHOR, engine.compute(*path))
        eventually(lambda path=path: readable(store, *path) == len(path), "the turn is on disk")
    eventually(lambda: writer.num_blocks_written == 9, "every block is written once")
    assert writer.num_paths_dropped == 0


def test_a_block_overwritten_while_it_is_copied_is_not_written(
    writer: WriteBehind, engine: Engine, store: SegmentStore
) -> None:
    """evicted and overwritten in the middle of the copy, told by `removed` as the engine does after its step."""
    first = engine.compute(1, 2, 3, 4)

    def step() -> None:
        engine.during_copy = lambda: None
        engine.compute(*range(50, 50 + NUM_BLOCKS))
        writer.removed(engine.pool.take_removed())

    engine.during_copy = step
    writer.offer(ANCHOR, first)
    eventually(lambda: writer.num_paths_dropped == 1, "the copy is given up")
    assert store.num_blocks == 0
    writer.offer(ANCHOR, path_of(*range(50, 50 + NUM_BLOCKS))[0])
    eventually(lambda: readable(store, *range(50, 50 + NUM_BLOCKS)) == NUM_BLOCKS, "what came instead is written")


@pytest.mark.parametrize("when", ["during_copy", "after_look"])
@pytest.mark.parametrize("num_before", [0, 2])
def test_what_is_dropped_meanwhile_does_not_come_back(
    writer: WriteBehind, engine: Engine, store: SegmentStore, tmp_path: Path, when: str, num_before: int
) -> None:
    """No step tells of it: a drop comes between two steps."""
    if num_before:
        writer.offer(ANCHOR, engine.compute(1, 2))
        eventually(lambda: store.num_blocks == num_before, "the beginning is on disk")

    def drop() -> None:
        engine.pool.drop(ROOT, None, engine.now)
        store.drop(ROOT)

    hashes = engine.compute(1, 2, 3)
    setattr(engine, when, drop)
    writer.offer(ANCHOR, hashes)
    eventually(lambda: writer.num_paths_dropped == 1, "the write is given up")
    assert store.num_blocks == 0 and files_under(tmp_path) == []


def test_a_drop_elsewhere_costs_no_write(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    def drop() -> None:
        engine.during_copy = lambda: None
        store.drop(BlockHash(b"o" * 16))

    engine.during_copy = drop
    writer.offer(ANCHOR, engine.compute(1, 2, 3))
    eventually(lambda: readable(store, 1, 2, 3) == 3, "the path is on disk")
    assert writer.num_paths_dropped == 0


def test_an_eviction_elsewhere_spoils_nothing(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    engine.compute(*range(50, 50 + NUM_BLOCKS))
    hashes = engine.compute(1, 2)
    engine.during_copy = lambda: writer.removed(engine.pool.take_removed())
    writer.offer(ANCHOR, hashes)
    eventually(lambda: readable(store, 1, 2) == 2, "the path is on disk")
    assert writer.num_paths_dropped == 0


def test_what_is_evicted_before_its_turn_is_dropped(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    hashes = engine.compute(1, 2, 3)
    engine.compute(*range(50, 50 + NUM_BLOCKS - 1))
    writer.offer(ANCHOR, hashes)
    eventually(lambda: writer.num_paths_dropped == 1, "the path is given up")
    assert readable(store, 1, 2, 3) == writer.num_blocks_written == 1


def test_a_full_queue_drops_and_never_waits(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    hashes = engine.compute(1, 2)
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert release.wait(DEADLINE_S)

    engine.during_copy = hold
    writer.offer(ANCHOR, hashes)
    assert entered.wait(DEADLINE_S)
    for _ in range(write_behind.MAX_QUEUED + 3):
        writer.offer(ANCHOR, hashes)
    assert writer.num_paths_dropped == 3
    release.set()
    eventually(lambda: readable(store, 1, 2) == 2, "the first is written")


@pytest.mark.parametrize("store", ["disk"], indirect=True)
def test_a_disk_that_fails_is_tried_again(
    writer: WriteBehind, engine: Engine, store: SegmentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "PAUSE_S", 0.0)
    folder = tmp_path / FORM.namespace.hex()
    shutil.rmtree(folder)
    writer.offer(ANCHOR, engine.compute(1, 2))
    eventually(lambda: writer.num_errors == 1, "the failure is counted")
    folder.mkdir()
    writer.offer(ANCHOR, engine.compute(1, 2, 3))
    eventually(lambda: readable(store, 1, 2, 3) == 3, "the path is on disk")
    assert writer.num_errors == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), ValueError("a fault of ours")])
def test_whatever_a_copy_raises_the_next_is_written(
    writer: WriteBehind,
    engine: Engine,
    store: SegmentStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    monkeypatch.setattr(write_behind, "PAUSE_S", 0.0)

    def fail() -> None:
        engine.during_copy = lambda: None
        raise error

    engine.during_copy = fail
    writer.offer(ANCHOR, engine.compute(1, 2))
    eventually(lambda: writer.num_paths_dropped == 1, "the failure is counted")
    assert writer.num_errors == 1 and not writer._copying
    writer.offer(ANCHOR, engine.compute(1, 2, 3))
    eventually(lambda: readable(store, 1, 2, 3) == 3, "the path is in the tier")
    assert writer.num_errors == 1


def test_without_memory_to_copy_into_the_start_is_refused(store: SegmentStore, engine: Engine) -> None:
    def no_rows(_num_rows: int, _row_bytes: int) -> Payload:
        raise MemoryError

    engine.host_rows = no_rows  # type: ignore[method-assign]
    with pytest.raises(ModelRefused, match="the system refuses this process the memory"):
        WriteBehind(store, engine, engine.pool.find, engine.between_steps)


def test_a_stopped_engine_writes_nothing_more(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    engine.is_stopped = True
    writer.offer(ANCHOR, engine.compute(1, 2))
    eventually(lambda: writer.num_paths_dropped == 1, "the path is given up")
    assert store.num_blocks == 0


def test_closing_writes_what_waits(writer: WriteBehind, engine: Engine, store: SegmentStore) -> None:
    for number in range(4):
        writer.offer(ANCHOR, engine.compute(*[number] * (CAPACITY - 1)))
    writer.close(DEADLINE_S)
    assert store.num_blocks == 4 * (CAPACITY - 1)
