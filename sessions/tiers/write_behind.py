"""WriteBehind: blocks of finished prompts and turns into a tier, off the step. Owns one thread and its queue.

It holds no block. It copies what it finds and asks afterwards whether that was still true:

    writer thread   copying = {h3, h4}   find h3, h4   copy their KV ......... between steps: was one of them removed?
    engine thread        step: schedule evicts h4, overwrites its KV ─ removed([h4]) ┘        └ yes: h4 is spoiled

A block loses its hash before anything is written over it, and `removed` is called after every step, before what was
asked "between steps": a copy that is not spoiled was whole. So the tier takes nothing from the pool, and under
pressure what is lost is a write, counted, never a request. One run of blocks is copied per step at the most, which is
more than a step computes.
"""

import queue
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import structlog

from sessions.engine.block import Block
from sessions.errors import ModelRefused
from sessions.hashing import token_bytes
from sessions.tiers.segment import Anchor, Entry, Payload, SegmentShape, reason_of
from sessions.tiers.segment_store import SegmentStore
from sessions.types import BlockHash

T = TypeVar("T")
log = structlog.get_logger(__name__)

MAX_QUEUED = 512
"""Paths that wait to be written; past it they are dropped."""
STEP_TIMEOUT_S = 30.0
"""A step that takes longer than this is not waited for."""
PAUSE_S = 5.0
"""After a failed write the tier is left alone for so long."""


class KVReader(Protocol):
    """Where KV is read from (`KVCache`). All as there."""

    @property
    def block_bytes(self) -> int: ...

    @property
    def layout(self) -> str: ...

    def host_rows(self, num_rows: int, row_bytes: int) -> Payload:
        """Zeros uint8 [num_rows, row_bytes] in memory of the host, as fast to copy to as can be. Any thread. Raises
        MemoryError."""

    def read_blocks(self, block_ids: Sequence[int], out: Payload) -> None:
        """Copy whole blocks into `out` [n, block_bytes]. Any thread; torn if they are written meanwhile."""


Find = Callable[[BlockHash], Block | None]
"""The pool's full block of a hash, perhaps stale. Any thread."""
BetweenSteps = Callable[[Callable[[], bool]], "Future[bool]"]
"""Runs a function on the engine thread, after the last step's `removed`. Any thread."""


class WriteBehind:
    """`offer` and `removed` are the engine thread's, and return at once; `close` may come from any.

    Raises ModelRefused if there is no memory to copy into.
    """

    def __init__(self, store: SegmentStore, kv: KVReader, find: Find, between_steps: BetweenSteps) -> None:
        self.num_blocks_written = 0
        self.num_paths_dropped = 0
        """Not all of these was written: the queue was full, blocks were evicted first, no room, or the tier failed."""
        self.num_errors = 0
        self._store = store
        self._kv = kv
        self._find = find
        self._between_steps = between_steps
        self._rows = _rows_for(store.form, kv)
        self._queue: queue.Queue[tuple[Anchor, Sequence[BlockHash]] | None] = queue.Queue(MAX_QUEUED)
        self._copying: Collection[BlockHash] = ()
        self._is_spoiled = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"anaphora-{store.tier}-write", daemon=True)
        self._thread.start()

    # -- engine thread --

    def offer(self, after: Anchor, hashes: Sequence[BlockHash]) -> None:
        """These blocks, from their root's first one on, are in the pool: write what of them the tier has not."""
        try:
            self._queue.put_nowait((after, hashes))
        except queue.Full:
            self.num_paths_dropped += 1

    def removed(self, hashes: Sequence[BlockHash]) -> None:
        """The last step took these from the pool."""
        if self._copying and any(block_hash in self._copying for block_hash in hashes):
            self._is_spoiled = True

    # -- any thread --

    def close(self, timeout_s: float) -> None:
        """Write what waits, for as long as that; the engine must still run."""
        self._closing.set()
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    # -- writer thread --

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                is_written = self._write_path(*item)
            except Exception as error:  # noqa: BLE001 - no memory, on a GPU any RuntimeError: the thread must outlive it
                is_written, self._copying = False, ()
                self._failed(error)
            self.num_paths_dropped += not is_written

    def _write_path(self, after: Anchor, hashes: Sequence[BlockHash]) -> bool:
        """False if some of it could not be written. Raises what the tier and the device raise."""
        start = self._store.num_stored(hashes)
        if start:
            self._store.touch(hashes[start - 1])
        while start < len(hashes):
            at = after._replace(parent=hashes[start - 1]) if start else after
            num_drops = self._store.num_drops
            entries = self._copy(hashes[start : start + self._store.room_after(at.root, at.parent)])
            rows = self._rows[: len(entries)]
            if not entries:
                return False
            if not self._store.append(at, entries, rows, num_drops):
                if num_drops == self._store.num_drops:
                    return False
                start = self._store.num_stored(hashes)  # something was dropped, perhaps not of this: look again
                continue
            start += len(entries)
            self.num_blocks_written += len(entries)
        return True

    def _copy(self, hashes: Sequence[BlockHash]) -> list[Entry]:
        """The leading blocks of `hashes` that the pool holds, copied into `_rows`. Empty if they were spoiled."""
        self._is_spoiled = False
        self._copying = frozenset(hashes)
        entries: list[Entry] = []
        ids: list[int] = []
        for block_hash in hashes:
            block = self._find(block_hash)
            token_ids = block.token_ids if block else ()
            if block is None or len(token_ids) != self._store.form.block_size:
                break
            ids.append(block.id)
            entries.append(Entry(block_hash, token_bytes(token_ids)))
        if entries:
            self._kv.read_blocks(ids, self._rows[: len(ids), : self._kv.block_bytes])
        is_whole = bool(entries) and self._was_whole(entries)
        self._copying = ()
        return entries if is_whole else []

    def _was_whole(self, entries: Sequence[Entry]) -> bool:
        """Nothing of it was removed, nor dropped since the last step."""

        def look() -> bool:
            return not self._is_spoiled and all(self._find(entry.block_hash) for entry in entries)

        try:
            return self._between_steps(look).result(STEP_TIMEOUT_S)
        except (RuntimeError, TimeoutError):
            return False

    def _failed(self, error: Exception) -> None:
        """Warn, then leave the tier alone for a while: what comes meanwhile is dropped when the queue is full."""
        self.num_errors += 1
        log.warning("tier cannot write", tier=self._store.tier, error=reason_of(error), errors=self.num_errors)
        self._closing.wait(PAUSE_S)


def _rows_for(form: SegmentShape, kv: KVReader) -> Payload:
    """What one segment is copied into."""
    try:
        return kv.host_rows(form.capacity, form.stride)
    except MemoryError:
        raise ModelRefused(
            f"{form.capacity * form.stride / 2**20:.1f} MiB to copy KV through cannot be had: "
            "the system refuses this process the memory"
        ) from None
