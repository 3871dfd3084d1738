"""SegmentStore: the segments of one tier, their bound, and what of it is indexed. Any thread; blocking I/O.

Over the bound, what others left goes first, then our segments, least recently used first. Of two locks one is held by
whoever changes segments, the other guards the index and is never held during I/O: what lies in the medium is as much as
the index says or more, and may vanish or change under a reader, who then finds a miss.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from sessions.tiers.segment import Anchor, BadSegment, Contents, Entry, Medium, Payload, SegmentShape, TierName
from sessions.tiers.segment_index import Piece, Segment, SegmentIndex
from sessions.types import BlockHash

log = structlog.get_logger(__name__)


class TierHolding(NamedTuple):
    """A path in a tier, as its tenant lists it.

    leaf_hash: of its last block. num_shared_tokens: leading ones that another path has too. age_s: since it was last
    written or read.
    """

    tier: TierName
    leaf_hash: BlockHash
    num_tokens: int
    num_shared_tokens: int
    num_bytes: int
    age_s: float


class RecentSegment(NamedTuple):
    """Blocks in a tier that follow each other. parent: the block before them; None after a root. age_s: since it was
    last written or read."""

    tier: TierName
    parent: BlockHash | None
    hashes: tuple[BlockHash, ...]
    age_s: float


class SegmentStore:
    """Raises OSError when made; afterwards `append`, `read` and `drop` may raise OSError, nothing else does.

    max_bytes: bound of all that lies in the medium. shared_root: as in `SegmentIndex`.
    """

    def __init__(self, medium: Medium, max_bytes: int, shared_root: BlockHash | None = None) -> None:
        self.form: SegmentShape = medium.form
        self.tier: TierName = medium.tier
        self.max_bytes = max_bytes
        self.num_corrupt = 0
        """Segments that were not what they must be, and are gone."""
        self.num_drops = 0
        """Calls of `drop` that took effect, or are about to."""
        self._medium = medium
        self._files_lock = threading.Lock()
        self._lock = threading.Lock()
        self._index = SegmentIndex(self.form.capacity, shared_root)
        started_at = time.monotonic()
        self._num_bytes = 0
        found, self.num_corrupt = medium.found()
        self._adopt(dict(found))
        self._make_room(0, ())
        log.info(
            "tier ready",
            tier=self.tier,
            blocks=self.num_blocks,
            mib=round(self.num_bytes / 2**20),
            other_mib=round(medium.num_other_bytes / 2**20),
            removed=self.num_corrupt,
            seconds=round(time.monotonic() - started_at, 3),
        )

    def close(self) -> None:
        self._medium.close()

    @property
    def num_blocks(self) -> int:
        return self._index.num_blocks

    @property
    def num_bytes(self) -> int:
        """Of our own segments."""
        return self._num_bytes

    # -- lookup --

    def num_stored(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading `hashes` are stored."""
        with self._lock:
            return self._index.num_stored(hashes)

    def pieces(self, root: BlockHash, hashes: Sequence[BlockHash], start: int) -> list[Piece]:
        """Where the leading blocks of `hashes[start:]` are. No I/O; fit for the event loop."""
        with self._lock:
            return self._index.pieces(root, hashes, start)

    def holdings(self, tenant: BlockHash) -> list[TierHolding]:
        """Every path of a tenant's, the last used first. Blocking I/O."""
        with self._lock:
            paths = self._index.paths_of(tenant)
        size, found = self.form.block_size, []
        for segment, num_blocks, num_shared in reversed(paths):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                age_s = self._medium.age_s(segment.name)
                num_bytes = num_blocks * self.form.stride
                leaf = segment.hashes[-1]
                found.append(TierHolding(self.tier, leaf, num_blocks * size, num_shared * size, num_bytes, age_s))
        return found

    def recent(self, tenant: BlockHash, most: int) -> list[RecentSegment]:
        """Up to `most` segments of a tenant's, the last used first, each after the one it follows. Blocking I/O."""
        with self._lock:
            segments = self._index.recent_of(tenant, most)
            copies = [(segment.name, segment.anchor, tuple(segment.hashes)) for segment in segments]
        found = []
        for name, anchor, hashes in copies:
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                parent = None if anchor.parent == anchor.root else anchor.parent
                found.append(RecentSegment(self.tier, parent, hashes, self._medium.age_s(name)))
        return found

    def num_blocks_of(self, tenant: BlockHash) -> int:
        """Blocks of a tenant's, each counted once. O(segments)."""
        with self._lock:
            return sum(len(segment.hashes) for segment in self._index if segment.anchor.tenant == tenant)

    def has(self, block_hash: BlockHash) -> bool:
        with self._lock:
            return self._index.place_of(block_hash) is not None

    def touch(self, block_hash: BlockHash) -> None:
        """The path up to this block was used now."""
        with self._lock:
            segment = self._index.segment_of(block_hash)
            if segment is not None:
                self._index.touch(segment)

    def room_after(self, root: BlockHash, parent: BlockHash) -> int:
        """How many blocks after `parent` one `append` takes: what its segment has room for, or one of their own."""
        with self._lock:
            growing = self._index.growing(root, parent)
            return self.form.capacity - (len(growing.hashes) if growing else 0)

    # -- contents --

    def append(self, after: Anchor, entries: Sequence[Entry], rows: Payload, num_drops: int) -> bool:
        """Store blocks that follow `after.parent`, at most `room_after` of them. One thread only. Raises OSError.

        rows: uint8 [len(entries), stride]. num_drops: as it was before `rows` were copied, so that what is dropped
        meanwhile stays away. False if anything was, if there is no room, or if the parent is not stored any more.
        """
        with self._files_lock:
            return num_drops == self.num_drops and self._append(after, entries, rows)

    def _append(self, after: Anchor, entries: Sequence[Entry], rows: Payload) -> bool:
        hashes = [entry.block_hash for entry in entries]
        with self._lock:
            growing = self._index.growing(after.root, after.parent)
            before = self._index.segment_of(after.parent)
            if before is not None:
                self._index.touch(before)
            elif after.parent != after.root:
                return False
            kept = tuple(before.needed()) if before is not None else ()
        num_before = len(growing.hashes) if growing else 0
        num_bytes = self.form.segment_bytes(len(entries)) if growing is None else len(entries) * self.form.stride
        if not self._make_room(num_bytes, kept):
            return False
        name = growing.name if growing else hashes[0].hex()
        anchor = growing.anchor if growing else after
        try:
            self._medium.append(name, anchor, num_before, entries, rows)
        except FileNotFoundError:
            if growing is None:
                raise
            self._remove(growing)  # somebody else deleted it
            return False
        with self._lock:
            is_stored = self._enter(growing, anchor, hashes)
            self._num_bytes += num_bytes if is_stored else 0
        if not is_stored:
            self._medium.cut(name, num_before)
        return is_stored

    def read(self, piece: Piece, expected: Sequence[Entry]) -> Payload | None:
        """The KV of a piece, uint8 [num_blocks, block_bytes], if it holds just that.

        None if it is gone meanwhile, or bad: then it is removed with all that follows it. Raises OSError.
        """
        segment = piece.segment
        try:
            payload = self._medium.read(segment.name, segment.anchor, piece.first, expected)
        except (FileNotFoundError, BadSegment) as error:
            self._refuse(piece, expected, error)
            return None
        with self._lock:
            if segment in self._index:
                self._index.touch(segment)
        return payload

    def _refuse(self, piece: Piece, expected: Sequence[Entry], error: Exception) -> None:
        """It is not what the index says; nor is that anything, where it was dropped meanwhile."""
        with self._files_lock:
            with self._lock:
                is_indexed = self._index.holds(piece, [entry.block_hash for entry in expected])
            if not is_indexed:
                return
            if isinstance(error, BadSegment):
                log.warning("segment refused", tier=self.tier, name=piece.segment.name, reason=str(error))
                self.num_corrupt += 1
            self._remove(piece.segment)

    def drop(self, root: BlockHash, first: BlockHash | None = None) -> list[BlockHash]:
        """Forget everything under `root`, or block `first` and what follows it; returns the blocks. Raises OSError.

        Under a tenant's root without a salt is everything of the tenant's, whatever its root.
        """
        with self._files_lock:
            self.num_drops += 1
            with self._lock:
                place = None if first is None else self._index.place_of(first)
                whole = self._index.under(root) if first is None else []
            places = [place] if place is not None else [(segment, 0) for segment in whole]
            return [block_hash for segment, index in places for block_hash in self._cut(segment, index)]

    def chain_to(self, tenant: BlockHash, leaf: BlockHash) -> tuple[BlockHash, list[BlockHash]] | None:
        """(root, hashes from its first block on) of the path to a block; None if the tenant has no such. No I/O."""
        with self._lock:
            segment = self._index.segment_of(leaf)
            if segment is None or segment.anchor.tenant != tenant:
                return None
            return segment.anchor.root, self._index.chain_to(leaf)

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of a path other paths here need too. No I/O."""
        with self._lock:
            return self._index.num_needed(hashes)

    def check_integrity(self) -> None:
        """Raise AssertionError unless index, medium and sizes agree. Only while nobody writes."""
        with self._lock:
            self._index.check_integrity()
            assert self._num_bytes == self._size_of(list(self._index)), "the byte count is wrong"
            names = {segment.name for segment in self._index}
        assert names == self._medium.names(), "medium and index disagree"

    # -- inside --

    def _enter(self, growing: Segment | None, anchor: Anchor, hashes: Sequence[BlockHash]) -> bool:
        """Index what was written; the lock is held. False if it does not join what is stored any more."""
        if growing is None:
            return self._index.add(anchor, hashes) is not None
        if growing not in self._index:
            return False
        self._index.extend(growing, hashes)
        return True

    def _size_of(self, segments: Sequence[Segment]) -> int:
        return sum(self.form.segment_bytes(len(segment.hashes)) for segment in segments)

    def _make_room(self, num_bytes: int, kept: Sequence[Segment]) -> bool:
        """Delete what goes first until `num_bytes` more fit; False if only `kept` is left to go. Raises OSError."""
        while self._num_bytes + self._medium.num_other_bytes + num_bytes > self.max_bytes:
            if self._medium.num_other_bytes:
                self._medium.make_room()
                continue
            with self._lock:
                oldest = self._index.oldest()
            if oldest is None or oldest in kept:
                return False
            self._remove(oldest)
        return True

    def _remove(self, segment: Segment) -> None:
        """Forget a segment and all that follows it."""
        self._cut(segment, 0)

    def _cut(self, segment: Segment, num_kept: int) -> list[BlockHash]:
        """Forget what a segment has after its first blocks, and all that follows that; then change the medium.

        Leaves go first. Returns the blocks.
        """
        with self._lock:
            if segment not in self._index:
                return []
            num_cut = len(segment.hashes) - num_kept if num_kept else 0
            hashes, removed = self._index.cut(segment, num_kept)
            self._num_bytes -= self._size_of(removed) + num_cut * self.form.stride
        for gone in removed:
            self._medium.cut(gone.name, 0)
        if num_kept:
            self._medium.cut(segment.name, num_kept)
        return hashes

    def _adopt(self, found: dict[str, Contents]) -> None:
        """Add segments in the order of their paths, then put them in the order of their last use."""
        after: dict[BlockHash, list[str]] = {}
        for name, contents in found.items():
            after.setdefault(contents.anchor.parent, []).append(name)
        adopted: list[tuple[int, Segment]] = []
        pending = [contents.anchor.root for contents in found.values()]
        while pending:
            for name in after.pop(pending.pop(), ()):
                anchor, entries, used_at_ns = found[name]
                segment = self._index.add(anchor, [entry.block_hash for entry in entries])
                if segment is not None:
                    del found[name]
                    pending += segment.hashes
                    adopted.append((used_at_ns, segment))
        for _, segment in sorted(adopted, key=lambda pair: pair[0]):
            self._index.touch(segment)
        self._num_bytes = self._size_of([segment for _, segment in adopted])
        for name in found:
            self.num_corrupt += 1
            self._medium.cut(name, 0)
