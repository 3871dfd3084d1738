"""How many blocks each owner may leave behind. Touches counts and the owners' own free queues; the pool does the rest.

A budget bounds what an owner has registered, held or not. A running request is never denied a block: what is over the
budget is cut back from what nobody holds, in the usual order, once blocks are freed and before anybody else's are
evicted. Every operation costs the same however many owners there are; owners without a budget cost nothing.
"""

from collections.abc import Iterable, Iterator, Sequence

from sessions.engine.block import Block
from sessions.engine.retention import FreeQueues


class Budget:
    """One owner's bound, and what counts in it."""

    __slots__ = ("free", "max_num_blocks", "num_blocks")

    def __init__(self, max_num_blocks: int) -> None:
        self.max_num_blocks = max_num_blocks
        self.num_blocks = 0
        """Registered blocks, full or partial."""
        self.free = FreeQueues()
        """Those of them that stand in the pool's queues too."""


class Budgets:
    """Budgets by owner."""

    __slots__ = ("_exceeded", "by_owner")

    def __init__(self) -> None:
        self.by_owner: dict[str | None, Budget] = {}
        self._exceeded: dict[str | None, Budget] = {}

    def limit(self, owner: str, max_num_blocks: int, blocks: Iterable[Block], free: FreeQueues) -> None:
        """See `BlockPool.set_budget`. `free`: the pool's queues, whose order the owner's take over."""
        self.by_owner.pop(owner, None)
        self._exceeded.pop(owner, None)
        if not max_num_blocks:
            return
        self.by_owner[owner] = Budget(max_num_blocks)
        for block in blocks:
            if block.owner == owner:
                self.registered(block)
        self.freed([block for block in free if block.owner == owner])

    def registered(self, block: Block) -> None:
        budget = self.by_owner.get(block.owner)
        if budget is not None:
            budget.num_blocks += 1
            if budget.num_blocks > budget.max_num_blocks:
                self._exceeded[block.owner] = budget

    def unregistered(self, block: Block) -> None:
        budget = self.by_owner.get(block.owner)
        if budget is not None:
            budget.num_blocks -= 1
            if budget.num_blocks <= budget.max_num_blocks:
                self._exceeded.pop(block.owner, None)

    def freed(self, blocks: Iterable[Block]) -> None:
        """These came to the ends of the pool's queues of their levels, in this order."""
        for block in blocks:
            if block.owner in self.by_owner:
                self.by_owner[block.owner].free.add((block,))

    def unfreed(self, blocks: Iterable[Block]) -> None:
        """These left the pool's queues."""
        for block in blocks:
            if block.owner in self.by_owner:
                self.by_owner[block.owner].free.remove((block,))

    def excess(self, now: float) -> Iterator[Block]:
        """The blocks to evict for the budgets' sake; the caller evicts each before it asks for the next."""
        for budget in tuple(self._exceeded.values()):
            while budget.num_blocks > budget.max_num_blocks and len(budget.free):
                yield budget.free.next(now)[0]

    def check_integrity(self, blocks: Sequence[Block], free: set[Block]) -> None:
        """Raise AssertionError unless counts and queues are what `blocks` and the pool's free ones say. O(blocks)."""
        for owner, budget in self.by_owner.items():
            owned = [block for block in blocks if block.owner == owner]
            assert budget.num_blocks == len(owned), f"an owner has {len(owned)} blocks, not {budget.num_blocks}"
            assert set(budget.free) == free.intersection(owned), "an owner's queues differ from the pool's"
            assert (owner in self._exceeded) == (budget.num_blocks > budget.max_num_blocks), "exceeded or not?"
            budget.free.check_integrity()
        for block in blocks:
            parent = block.parent
            assert parent is None or parent.owner in (None, block.owner), f"{block}: its parent is another owner's"
