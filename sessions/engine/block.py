"""Block, and what blocks stand in: a parent's sorted children, and the free queue. Changed by `BlockPool` only."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from sessions.types import BlockHash, BlockId

_NEIGHBOURS = 8
"""Children looked at for one that goes on: equal partial tails of several requests may stand before it."""


class Block:
    """One block of the pool. Read anywhere; changed by `BlockPool` only."""

    __slots__ = ("block_hash", "children", "id", "next", "parent", "previous", "ref_count", "root", "token_ids")

    def __init__(self, block_id: BlockId) -> None:
        self.id = block_id
        self.ref_count = 0
        self.token_ids: tuple[int, ...] = ()
        """Tokens whose KV is known to be here; at most `block_size`, empty while unregistered."""
        self.block_hash: BlockHash | None = None
        self.root: BlockHash | None = None
        """Root of the tree the block is registered in; None while unregistered."""
        self.parent: Block | None = None
        """The block before; None for a first block and while unregistered."""
        self.children: Children | None = None
        self.previous: Block | None = None
        self.next: Block | None = None

    @property
    def is_registered(self) -> bool:
        return self.root is not None

    @property
    def is_full(self) -> bool:
        return self.block_hash is not None

    def __repr__(self) -> str:
        return f"Block({self.id}, ref_count={self.ref_count}, token_ids={self.token_ids})"


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


class FreeQueue:
    """Intrusive doubly linked list through `Block.previous`/`next`: O(1) removal from the middle."""

    def __init__(self) -> None:
        self._sentinel = Block(BlockId(-1))
        self._sentinel.previous = self._sentinel.next = self._sentinel
        self.length = 0

    def __iter__(self) -> Iterator[Block]:
        block = self._sentinel.next
        while block is not self._sentinel:
            assert block is not None
            yield block
            block = block.next

    def append(self, block: Block) -> None:
        assert self._sentinel.previous is not None
        self._insert_after(self._sentinel.previous, block)

    def push_head(self, block: Block) -> None:
        self._insert_after(self._sentinel, block)

    def pop_head(self) -> Block:
        block = self._sentinel.next
        assert block is not None and block is not self._sentinel
        self.remove(block)
        return block

    def remove(self, block: Block) -> None:
        assert block.previous is not None and block.next is not None
        block.previous.next, block.next.previous = block.next, block.previous
        block.previous = block.next = None
        self.length -= 1

    def _insert_after(self, anchor: Block, block: Block) -> None:
        assert anchor.next is not None
        block.previous, block.next = anchor, anchor.next
        anchor.next.previous = block
        anchor.next = block
        self.length += 1


def common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading elements that `left` and `right` share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
