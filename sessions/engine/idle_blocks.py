"""IdleBlocks: the blocks that nobody holds or pins, in the order in which they are handed out. `BlockPool`'s own.

empty blocks │ what exceeds its owner's budget │ cached blocks, in the order of `retention.py`
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from sessions.engine.block import Block
from sessions.engine.budgets import Budgets
from sessions.engine.losses import LossReason
from sessions.engine.retention import FreeQueues


class IdleBlocks:
    """Empty blocks, the free queues, and beside these the queues of the owners that have a budget."""

    __slots__ = ("_empty", "_free", "budgets")

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._empty = list(blocks)[::-1]
        """Taken from the end: what was emptied last is used first."""
        self._free = FreeQueues()
        self.budgets = Budgets()

    def __len__(self) -> int:
        return len(self._empty) + len(self._free)

    def add(self, blocks: Sequence[Block]) -> None:
        """Nobody holds or pins these any more: a path's end, its last block first, so the registered follow the others.

        Nothing here was used later than these, nor one of them than the next.
        """
        num_empty = bisect_left(blocks, True, key=lambda block: block.is_registered)
        self._empty += blocks[:num_empty]
        registered = blocks[num_empty:]
        self._free.add(registered)
        if self.budgets.by_owner:
            self.budgets.freed(registered)

    def remove(self, blocks: Sequence[Block]) -> None:
        """Registered blocks are wanted as they are."""
        self._free.remove(blocks)
        if self.budgets.by_owner:
            self.budgets.unfreed(blocks)

    def empty(self, block: Block) -> None:
        """A registered block is about to lose its content."""
        self.remove((block,))
        self._empty.append(block)

    def take(self, num_blocks: int) -> list[Block]:
        """That many empty blocks; there are enough."""
        return [self._empty.pop() for _ in range(num_blocks)]

    def victims(self, num_blocks: int, now: float) -> Iterator[tuple[Block, LossReason]]:
        """What to evict, and why, until `num_blocks` are empty. The caller evicts each before it asks for the next."""
        if num_blocks > len(self._empty):
            yield from self.over_budget(now)
        while num_blocks > len(self._empty):
            block, is_expired = self._free.next(now)
            yield block, "expired" if is_expired else "evicted"

    def over_budget(self, now: float) -> Iterator[tuple[Block, LossReason]]:
        """The same for the budgets' sake."""
        for block in self.budgets.excess(now):
            yield block, "budget"

    def set_budget(self, owner: str, max_num_blocks: int, blocks: Sequence[Block]) -> None:
        """Bound `owner`, 0 for no bound; `blocks` are all there are. O(blocks)."""
        self.budgets.limit(owner, max_num_blocks, blocks, self._free)

    def check_integrity(self, blocks: Sequence[Block]) -> None:
        """Raise AssertionError unless each of `blocks` stands where it belongs. O(blocks)."""
        empty, free = set(self._empty), set(self._free)
        assert len(empty) == len(self._empty), "a block is empty twice"
        for block in blocks:
            assert (block in empty) == (block.is_idle and not block.is_registered), f"{block}: empty or not?"
            assert (block in free) == (block.is_idle and block.is_registered), f"{block}: free or not?"
        self._free.check_integrity()
        self.budgets.check_integrity(blocks, free)
