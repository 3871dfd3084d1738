"""Block, and a block's sorted children. Changed by `BlockPool` and its `BlockTree` only."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Protocol

from sessions.types import BlockHash, BlockId

_NEIGHBOURS = 8
"""Children looked at for one that goes on: equal partial tails of several requests may stand before it."""


class Block:
    """One block of the pool. Read anywhere; changed by `BlockPool` and its `BlockTree` only."""

    __slots__ = (
        "block_hash",
        "children",
        "id",
        "last_used_at",
        "level",
        "num_hits",
        "num_pins",
        "owner",
        "parent",
        "ref_count",
        "root",
        "token_ids",
    )

    def __init__(self, block_id: BlockId) -> None:
        self.id = block_id
        self.ref_count = 0
        self.num_pins = 0
        """Pinned paths that this block is part of."""
        self.last_used_at = 0.0
        """time.monotonic() when the last holder let go; stale while the block is held."""
        self.token_ids: tuple[int, ...] = ()
        """Tokens whose KV is known to be here; at most `block_size`, empty while unregistered."""
        self.block_hash: BlockHash | None = None
        self.root: BlockHash | None = None
        """Root of the tree the block is registered in; None while unregistered."""
        self.owner: str | None = None
        """Whose budget the block counts in; None is nobody's."""
        self.parent: Block | None = None
        """The block before; None for a first block and while unregistered."""
        self.children: Children | None = None
        self.level = 0
        """How much is lost with the block (`retention.py`); never more than its parent's."""
        self.num_hits = 0
        """Later requests whose match ended here, or in a block after this one that is no longer stored."""

    @property
    def is_registered(self) -> bool:
        return self.root is not None

    @property
    def is_full(self) -> bool:
        return self.block_hash is not None

    @property
    def is_idle(self) -> bool:
        """Neither held nor pinned: empty, or in the free queues."""
        return self.ref_count == 0 and self.num_pins == 0

    def __repr__(self) -> str:
        return f"Block({self.id}, ref_count={self.ref_count}, token_ids={self.token_ids})"


class Path(Protocol):
    """Blocks that follow each other from a root on: a list, or a request's block table."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Block: ...

    def __reversed__(self) -> Iterator[Block]: ...


def num_idle(path: Sequence[Block]) -> int:
    """How many blocks of a path nobody holds or pins: its last ones, for a block is held or pinned with its parent.

    held, pinned   [ 2 ][ 1 ][ 1 ][ 0 ][ 0 ]       O(log blocks)
    """
    return len(path) - bisect_left(path, True, key=lambda block: block.is_idle)


class Children:
    """The registered blocks that follow one block (or a root), sorted by their tokens.

    Sorted, because the sibling that shares most leading tokens with a given run stands next to where that run would be
    inserted: two comparisons instead of one per sibling, however many conversations branch off a system prompt.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[int, ...], int, Block]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Block]:
        return (block for _, _, block in self._entries)

    def add(self, block: Block) -> None:
        insort(self._entries, (block.token_ids, block.id, block))

    def remove(self, block: Block) -> None:
        del self._entries[bisect_left(self._entries, (block.token_ids, block.id))]

    def neighbours(self, token_ids: tuple[int, ...]) -> Iterator[Block]:
        """The siblings just before and just after where `token_ids` would stand."""
        position = bisect_left(self._entries, (token_ids,))
        for index in (position, position - 1):
            if 0 <= index < len(self._entries):
                yield self._entries[index][2]

    def extending(self, token_ids: tuple[int, ...]) -> Block | None:
        """A child whose tokens begin with `token_ids`, and if it can be, are more or fill a block."""
        position = bisect_left(self._entries, (token_ids,))
        best: Block | None = None
        for tokens, _, block in self._entries[position : position + _NEIGHBOURS]:
            if tokens[: len(token_ids)] != token_ids:
                break
            if len(tokens) > len(token_ids) or block.is_full:
                return block
            best = block
        return best

    def longest_common_prefix(self, token_ids: tuple[int, ...]) -> tuple[Block | None, int]:
        """The child sharing most leading tokens with `token_ids`, and how many; (None, 0) if no child shares any."""
        best: Block | None = None
        best_length = 0
        for block in self.neighbours(token_ids):
            length = common_prefix_length(block.token_ids, token_ids)
            if length > best_length:
                best, best_length = block, length
        return best, best_length


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements that `left` and `right` share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
