"""SegmentMemory: segments in memory of the host. Gone with the process; nothing in it can be torn.

    slab     [ row ][ row ][ row ] ...      a row is a block's KV; rows that are given back are used again
    held     name ─▶ anchor, [ (entry, row) (entry, row) ... ]

Slabs are taken when they are needed, up to the bound, and kept: for a pool on a GPU they are pinned, which takes long.
One lock is held while rows are copied, so that no row is given to another under a reader; not while a slab is taken.
"""

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from sessions.tiers.segment import Anchor, BadSegment, Contents, Entry, Payload, SegmentShape, TierName

SLAB_BYTES: Final = 64 * 2**20

NewRows = Callable[[int, int], Payload]
"""(number, bytes of each) -> uint8 [number, bytes], where the device copies to and from fastest. Raises MemoryError."""


class SegmentMemory:
    """A `Medium` of at most `max_bytes`."""

    tier: Final[TierName] = "host"

    def __init__(self, form: SegmentShape, max_bytes: int, new_rows: NewRows) -> None:
        self.form = form
        self.num_other_bytes = 0
        self._new_rows = new_rows
        self._num_rows_left = max_bytes // form.block_bytes
        """That no slab has yet."""
        self._free: list[Payload] = []
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()

    def make_room(self) -> None:
        raise AssertionError("nobody else leaves anything here")

    def found(self) -> tuple[dict[str, Contents], int]:
        return {}, 0

    def append(self, name: str, anchor: Anchor, num_before: int, entries: Sequence[Entry], rows: Payload) -> None:
        self._reserve(len(entries))
        with self._lock:
            held = self._held.get(name) or _Held(anchor)
            if len(held.blocks) < num_before:
                raise FileNotFoundError(errno.ENOENT, "The segment is gone", name)
            taken = self._free[-len(entries) :]
            del self._free[-len(entries) :]
            for row, copy in zip(taken, rows, strict=True):
                row[:] = copy
            self._give_back(held, num_before)
            held.blocks += zip(entries, taken, strict=True)
            held.used_at = time.monotonic()
            self._held[name] = held

    def cut(self, name: str, num_kept: int) -> None:
        with self._lock:
            held = self._held.get(name)
            if held is not None:
                self._give_back(held, num_kept)
                if not num_kept:
                    del self._held[name]

    def read(self, name: str, anchor: Anchor, first: int, expected: Sequence[Entry]) -> Payload:
        payload = self._new_rows(len(expected), self.form.block_bytes)[:]
        with self._lock:
            held = self._held.get(name)
            if held is None:
                raise FileNotFoundError(errno.ENOENT, "The segment is gone", name)
            blocks = held.blocks[first : first + len(expected)]
            if held.anchor != anchor or [entry for entry, _ in blocks] != list(expected):
                raise BadSegment("other blocks than expected")
            for copy, (_, row) in zip(payload, blocks, strict=True):
                copy[:] = row
            held.used_at = time.monotonic()
        return payload

    def age_s(self, name: str) -> float:
        held = self._held.get(name)
        if held is None:
            raise FileNotFoundError(errno.ENOENT, "The segment is gone", name)
        return time.monotonic() - held.used_at

    def names(self) -> set[str]:
        return set(self._held)

    def close(self) -> None:
        """Nothing is left to do: it goes with the process."""

    def _reserve(self, num_rows: int) -> None:
        """Slabs until so many rows are free. Raises OSError where there is no memory.

        The lock is not held: readers would wait for the pinning. Rows are taken by the one writer only, so none goes.
        """
        while len(self._free) < num_rows:
            count = min(self._num_rows_left, max(num_rows, SLAB_BYTES // self.form.block_bytes))
            try:
                slab = self._new_rows(count, self.form.block_bytes) if count else None
            except MemoryError:
                slab = None
            if slab is None:
                raise OSError(errno.ENOMEM, "No memory for KV")
            self._num_rows_left -= count
            with self._lock:
                self._free.extend(slab)

    def _give_back(self, held: "_Held", num_kept: int) -> None:
        """The lock is held."""
        self._free += [row for _, row in held.blocks[num_kept:]]
        del held.blocks[num_kept:]


class _Held:
    """A segment. used_at: time.monotonic()."""

    __slots__ = ("anchor", "blocks", "used_at")

    def __init__(self, anchor: Anchor) -> None:
        self.anchor = anchor
        self.blocks: list[tuple[Entry, Payload]] = []
        self.used_at = 0.0
