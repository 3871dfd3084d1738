"""Which segments there are, what follows what, and which goes first. Pure: no file, no lock, no clock.

    segment      [ h0 h1 .. h15 ] ── [ h16 .. h20 ]        grows to `capacity` blocks; child of where its parent is
                        └── [ x8 .. x12 ]                  a path that departs in the middle

What is stored is prefix-closed: a segment's first block follows the root or a block of another segment. Where a root
begins after shared content (`hashing.HashChain`), its first segments are children of a shared one: without that they
are of no use. The order is least recently used first; using a segment uses all before it, so a child always stands
before its parent, and the first of the order is a leaf. `check_integrity()` proves both.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sessions.tiers.segment import Anchor
from sessions.types import BlockHash


class Segment:
    """Consecutive blocks of one path in one file. Changed by `SegmentIndex` only."""

    __slots__ = ("anchor", "before", "children", "hashes", "head")

    def __init__(self, anchor: Anchor, hashes: Sequence[BlockHash], parent: "Segment | None") -> None:
        """parent: the segment that holds the anchor's parent, if one does."""
        self.anchor = anchor
        self.hashes = list(hashes)
        is_own = parent is not None and parent.anchor.root == anchor.root
        self.before = parent if is_own else None
        """The one of its own root that it goes on from; None for a first block."""
        self.head = None if is_own else parent
        """The shared one that it goes on from; of first blocks only, and of few."""
        self.children: set[Segment] = set()

    @property
    def name(self) -> str:
        """Of its file: what its first block is, in hex."""
        return self.hashes[0].hex()

    def path(self) -> Iterator["Segment"]:
        """This segment and all of its root before it, last first."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.before

    def needed(self) -> Iterator["Segment"]:
        """This segment and all before it, shared ones too, last first."""
        segment: Segment | None = self
        while segment is not None:
            yield segment
            segment = segment.before or segment.head


class Piece(NamedTuple):
    """Blocks [first, first + num_blocks) of a segment: blocks [position, position + num_blocks) of a prompt."""

    segment: Segment
    first: int
    num_blocks: int
    position: int


class StoredPath(NamedTuple):
    """A path from its root to a block that nothing follows, the last of `segment`. num_shared_blocks: leading ones that
    another path has too."""

    segment: Segment
    num_blocks: int
    num_shared_blocks: int


class SegmentIndex:
    """block hash -> (segment, place in it). Not thread-safe: its owner locks.

    shared_root: of what the operator declared shared, which other roots may begin after.
    """

    def __init__(self, capacity: int, shared_root: BlockHash | None = None) -> None:
        self._capacity = capacity
        self._shared_root = shared_root
        self._places: dict[BlockHash, tuple[Segment, int]] = {}
        self._order: OrderedDict[Segment, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Segment]:
        """In the order in which they would go."""
        return iter(self._order)

    def __contains__(self, segment: Segment) -> bool:
        return segment in self._order

    @property
    def num_blocks(self) -> int:
        return len(self._places)

    def num_stored(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading `hashes` are stored. Bisection is legal because storage is prefix-closed."""
        return bisect_left(hashes, True, key=lambda block_hash: block_hash not in self._places)

    def pieces(self, root: BlockHash, hashes: Sequence[BlockHash], start: int) -> list[Piece]:
        """Where the leading blocks of `hashes[start:]` are, as far as they are stored under `root`."""
        pieces: list[Piece] = []
        while start < len(hashes):
            place = self._places.get(hashes[start])
            if place is None or place[0].anchor.root != root:
                break
            segment, first = place
            longest = min(len(segment.hashes) - first, len(hashes) - start)
            count = 1
            while count < longest and segment.hashes[first + count] == hashes[start + count]:
                count += 1
            pieces.append(Piece(segment, first, count, start))
            start += count
        return pieces

    def place_of(self, block_hash: BlockHash) -> tuple[Segment, int] | None:
        """The segment that holds this block, and which of its blocks it is."""
        return self._places.get(block_hash)

    def segment_of(self, block_hash: BlockHash) -> Segment | None:
        place = self._places.get(block_hash)
        return place[0] if place else None

    def holds(self, piece: Piece, hashes: Sequence[BlockHash]) -> bool:
        """Are these blocks still where they were?"""
        return all(self._places.get(h) == (piece.segment, index) for index, h in enumerate(hashes, piece.first))

    def growing(self, root: BlockHash, parent: BlockHash) -> Segment | None:
        """The segment of this root that `parent` ends and that has room for more."""
        segment, index = self._places.get(parent, (None, 0))
        if segment is None or segment.anchor.root != root:
            return None
        return segment if index == len(segment.hashes) - 1 < self._capacity - 1 else None

    def touch(self, segment: Segment) -> None:
        """Used now, and with it all that stands before it."""
        for used in segment.needed():
            self._order.move_to_end(used)

    def oldest(self) -> Segment | None:
        """The leaf that was not used for longest."""
        return next(iter(self._order), None)

    def add(self, anchor: Anchor, hashes: Sequence[BlockHash]) -> Segment | None:
        """A new segment, used now. None if that would break the prefix closure, or a hash is stored already."""
        parent = self.segment_of(anchor.parent)
        if parent is None:
            is_closed = anchor.parent == anchor.root
        else:
            is_closed = parent.anchor.root in (anchor.root, self._shared_root)
        if not is_closed or any(block_hash in self._places for block_hash in hashes):
            return None
        segment = Segment(anchor, hashes, parent)
        if parent is not None:
            parent.children.add(segment)
        self._places.update((block_hash, (segment, index)) for index, block_hash in enumerate(hashes))
        self._order[segment] = None
        self.touch(segment)
        return segment

    def extend(self, segment: Segment, hashes: Sequence[BlockHash]) -> None:
        """`segment`, which has the room, holds these blocks too now."""
        start = len(segment.hashes)
        segment.hashes += hashes
        self._places.update((block_hash, (segment, start + index)) for index, block_hash in enumerate(hashes))
        self.touch(segment)

    def remove(self, segment: Segment) -> list[Segment]:
        """Forget a segment and all that follows it; returns them, what follows before what it follows."""
        removed: list[Segment] = []
        pending = [segment]
        while pending:
            removed.append(pending.pop())
            pending += removed[-1].children
        for gone in removed:
            del self._order[gone]
            for block_hash in gone.hashes:
                del self._places[block_hash]
        parent = segment.before or segment.head
        if parent is not None:
            parent.children.discard(segment)
        return removed[::-1]

    def cut(self, segment: Segment, num_kept: int) -> tuple[list[BlockHash], list[Segment]]:
        """Forget a segment's blocks after the first ones, and all that follows these; no block kept: the segment too.

        Returns the blocks, and the segments that went, what follows before what it follows.
        """
        removed: list[Segment] = []
        for child in [child for child in segment.children if self._hangs_at(child) > num_kept]:
            removed += self.remove(child)
        if not num_kept:
            removed += self.remove(segment)
            return [block_hash for gone in removed for block_hash in gone.hashes], removed
        lost = segment.hashes[num_kept:]
        del segment.hashes[num_kept:]
        for block_hash in lost:
            del self._places[block_hash]
        return [*lost, *(block_hash for gone in removed for block_hash in gone.hashes)], removed

    def under(self, root: BlockHash) -> list[Segment]:
        """The first segments of every path under `root`, and of all its tenant's if it is a tenant's. O(segments)."""
        return [
            segment
            for segment in self._order
            if segment.before is None and root in (segment.anchor.root, segment.anchor.tenant)
        ]

    def paths_of(self, tenant: BlockHash) -> list[StoredPath]:
        """Every path of a tenant's, whatever its root; the one that would go first comes first. O(segments)."""
        return [
            self._path_to(segment)
            for segment in self._order
            if segment.anchor.tenant == tenant and self._ends_path(segment)
        ]

    def recent_of(self, tenant: BlockHash, most: int) -> list[Segment]:
        """Up to `most` segments of a tenant's, the last used first: each after the one it follows. O(segments)."""
        return list(islice((segment for segment in reversed(self._order) if segment.anchor.tenant == tenant), most))

    def chain_to(self, block_hash: BlockHash) -> list[BlockHash]:
        """The path from its root's first block to this one; empty if it is not stored."""
        segment, index = self._places.get(block_hash, (None, 0))
        parts: list[list[BlockHash]] = []
        while segment is not None:
            parts.append(segment.hashes[: index + 1])
            index = self._hangs_at(segment) - 1 if segment.before is not None else 0
            segment = segment.before
        return [part_hash for part in reversed(parts) for part_hash in part]

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of a path others need too: up to where the last of them leaves it, or goes on."""
        following: BlockHash | None = None
        for num_blocks in range(len(hashes), 0, -1):
            block_hash = hashes[num_blocks - 1]
            if any(other != following for other in self._after(block_hash)):
                return num_blocks
            following = block_hash
        return 0

    def _after(self, block_hash: BlockHash) -> Iterator[BlockHash]:
        """The blocks that follow this one."""
        place = self._places.get(block_hash)
        if place is not None:
            segment, index = place
            yield from segment.hashes[index + 1 : index + 2]
            yield from (child.hashes[0] for child in segment.children if child.anchor.parent == block_hash)

    def _ends_path(self, segment: Segment) -> bool:
        return all(self._hangs_at(child) < len(segment.hashes) for child in segment.children)

    def _hangs_at(self, segment: Segment) -> int:
        """How many blocks of the segment before it a segment follows."""
        return self._places[segment.anchor.parent][1] + 1

    def _path_to(self, last: Segment) -> StoredPath:
        num_blocks = num_shared = 0
        child: Segment | None = None
        for segment in last.path():
            own = len(segment.hashes) if child is None else self._hangs_at(child)
            others = [min(own, self._hangs_at(other)) for other in segment.children if other is not child]
            if child is not None and len(segment.hashes) > own:
                others.append(own)
            num_blocks += own
            num_shared = num_shared + own if num_shared else max(others, default=0)
            child = segment
        return StoredPath(last, num_blocks, num_shared)

    def check_integrity(self) -> None:
        """Raise AssertionError unless every invariant of this module's docstring holds. O(blocks)."""
        seen: set[Segment] = set()
        for segment in self._order:
            assert 0 < len(segment.hashes) <= self._capacity, f"{segment.name}: {len(segment.hashes)} blocks"
            assert segment.children <= seen, f"{segment.name} would go before what follows it"
            seen.add(segment)
            for index, block_hash in enumerate(segment.hashes):
                assert self._places[block_hash] == (segment, index), f"{segment.name}: the hash map is wrong"
            parent = segment.before or segment.head
            if parent is None:
                assert segment.anchor.parent == segment.anchor.root, f"{segment.name} follows nothing"
            else:
                assert parent.anchor.root in (segment.anchor.root, self._shared_root), f"{segment.name}: another's"
                assert self._places[segment.anchor.parent][0] is parent, f"{segment.name}: its parent is elsewhere"
                assert segment in parent.children, f"{segment.name}: its parent does not know it"
        assert sum(len(segment.hashes) for segment in seen) == len(self._places), "a hash without a segment"
