"""Memory of the host: the same store as on disk, in lockstep with a list of names; and what only memory has."""

import threading
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.tiers import segment_memory
from sessions.tiers.segment import Anchor, Payload
from sessions.tiers.segment_memory import SegmentMemory
from sessions.tiers.segment_store import SegmentStore
from tests.unit.sessions.tiers.segments import (
    CAPACITY,
    ROOT,
    SHAPE,
    memory_store,
    path_of,
    readable,
    rows_of,
    store_path,
)

MAX_SEGMENTS = 5
SEGMENT_BYTES = SHAPE.segment_bytes(CAPACITY)

Name = tuple[int, ...]
"""A segment that is full, by the numbers on the way to it: (1, 0) follows (1,)."""


class Model:
    """Names in the order in which they go."""

    def __init__(self) -> None:
        self.names: OrderedDict[Name, None] = OrderedDict()

    def store(self, path: Name) -> None:
        for end in range(1, len(path) + 1):
            if path[:end] in self.names:
                continue
            self._touch(path[: end - 1])
            while len(self.names) >= MAX_SEGMENTS:
                oldest = next(iter(self.names))
                if oldest == path[: len(oldest)]:
                    return
                del self.names[oldest]
            self.names[path[:end]] = None
            self._touch(path[:end])

    def read(self, path: Name) -> int:
        end = 0
        while end < len(path) and path[: end + 1] in self.names:
            end += 1
            self._touch(path[:end])
        return end

    def drop(self, path: Name) -> int:
        gone = [name for name in self.names if name[: len(path)] == path]
        for name in gone:
            del self.names[name]
        return len(gone)

    def _touch(self, path: Name) -> None:
        for end in range(len(path), 0, -1):
            self.names.move_to_end(path[:end])


def blocks_of(path: Name) -> list[int]:
    return [number for number in path for _ in range(CAPACITY)]


def in_order(store: SegmentStore) -> list[bytes]:
    return [segment.hashes[0] for segment in store._index]


def first_hash(name: Name) -> bytes:
    return path_of(*blocks_of(name))[0][(len(name) - 1) * CAPACITY]


PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["store", "read", "drop"]), PATHS), max_size=30))
def test_in_lockstep_with_a_list_of_names(uses: list[tuple[str, Name]]) -> None:
    store, model = memory_store(MAX_SEGMENTS * SEGMENT_BYTES), Model()
    for use, path in uses:
        if use == "store":
            store_path(store, *blocks_of(path))
            model.store(path)
        elif use == "read":
            assert readable(store, *blocks_of(path)) == CAPACITY * model.read(path)
        else:
            assert len(store.drop(ROOT, first_hash(path))) == CAPACITY * model.drop(path)  # type: ignore[arg-type]
        assert in_order(store) == [first_hash(name) for name in model.names]
        store.check_integrity()
        assert_rows_add_up(store)


def assert_rows_add_up(store: SegmentStore) -> None:
    """No row is lost, in two places, or one too many."""
    memory = store._medium
    assert isinstance(memory, SegmentMemory)
    rows = [row for held in memory._held.values() for _, row in held.blocks]
    places = [row.ctypes.data for row in (*rows, *memory._free)]
    assert len(set(places)) == len(places) == MAX_SEGMENTS * CAPACITY - memory._num_rows_left
    assert len(rows) == store.num_blocks


def test_a_path_cut_inside_a_segment_gives_its_rows_back() -> None:
    store = memory_store(2 * SEGMENT_BYTES)
    for _ in range(20):
        assert store_path(store, *range(1, 9))
        store.drop(ROOT, path_of(*range(1, 9))[0][2])
        assert readable(store, *range(1, 9)) == 2
    assert store_path(store, *range(1, 9)) and readable(store, *range(1, 9)) == 8


def test_a_reader_never_sees_another_s_rows() -> None:
    """`readable` asserts that what it reads is right; a row that was given to another under it would not be."""
    store, done = memory_store(2 * SEGMENT_BYTES), threading.Event()

    def write() -> None:
        for number in range(400):
            store_path(store, *[number % 5] * CAPACITY)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    num_read = 0
    while not done.is_set():
        for number in range(5):
            num_read += readable(store, *[number] * CAPACITY)
    writer.join()
    assert num_read
    store.check_integrity()


def test_nobody_waits_for_memory_that_a_writer_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinning a slab takes long: reads go on meanwhile."""
    monkeypatch.setattr(segment_memory, "SLAB_BYTES", SHAPE.block_bytes)
    asked, was_read, in_time = threading.Event(), threading.Event(), []

    def new_rows(count: int, size: int) -> Payload:
        if threading.current_thread() is writer:
            asked.set()
            in_time.append(was_read.wait(5))
        return np.zeros((count, size), np.uint8)

    store = SegmentStore(SegmentMemory(SHAPE, 2**30, new_rows), 2**30)
    writer = threading.Thread(target=store_path, args=(store, 2))
    assert store_path(store, 1)
    writer.start()
    assert asked.wait(5)
    assert readable(store, 1) == 1
    was_read.set()
    writer.join()
    assert in_time == [True]
    assert readable(store, 2) == 1


def test_without_memory_nothing_is_stored_and_what_is_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_memory, "SLAB_BYTES", SHAPE.block_bytes)
    has_memory = True

    def new_rows(count: int, size: int) -> Payload:
        if not has_memory:
            raise MemoryError
        return np.zeros((count, size), np.uint8)

    store = SegmentStore(SegmentMemory(SHAPE, 2**30, new_rows), 2**30)
    assert store_path(store, 1)
    has_memory = False
    _, entries = path_of(7)
    with pytest.raises(OSError, match="No memory"):
        store.append(Anchor(ROOT, ROOT, ROOT), entries, rows_of(entries, SHAPE), store.num_drops)
    has_memory = True
    assert readable(store, 1) == 1 and readable(store, 7) == 0
    store.check_integrity()
    assert store_path(store, 7) and readable(store, 7) == 1
