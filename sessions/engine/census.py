"""Census: what a pool has stored, counted and listed by root and by owner. Changes nothing. Pure; engine thread."""

from collections.abc import Iterable, Sequence

from sessions.engine.block_tree import BlockTree
from sessions.engine.holdings import Holding, list_holdings
from sessions.engine.runs import Runs, list_runs
from sessions.types import BlockHash


class Census:
    """Of one pool's tree. Raises nothing."""

    def __init__(self, tree: BlockTree) -> None:
        self._tree = tree

    def holdings(self, roots: Iterable[BlockHash], now: float) -> list[Holding]:
        """Every path stored under these roots. O(blocks under them)."""
        return [holding for root in roots for holding in list_holdings(root, self._tree.roots.get(root) or (), now)]

    def runs(self, roots: Iterable[BlockHash], now: float, *, max_runs: int, max_blocks: int) -> Runs:
        """What is stored under these roots as at most so many runs, the last used first. O(max_blocks)."""
        tops = (self._tree.roots.get(root) or () for root in roots)
        return list_runs(tops, now, max_runs=max_runs, max_blocks=max_blocks)

    def num_tokens(self, roots: Iterable[BlockHash]) -> int:
        """Tokens stored under these roots. O(blocks under them)."""
        tops = (block for root in roots for block in self._tree.roots.get(root) or ())
        return sum(len(block.token_ids) for block in self._tree.below(tops))

    def num_pinned_tokens(self, roots: Iterable[BlockHash]) -> int:
        """Of `num_tokens`, those that are pinned. O(blocks under these roots)."""
        tops = (block for root in roots for block in self._tree.roots.get(root) or ())
        return sum(len(block.token_ids) for block in self._tree.below(tops) if block.num_pins)

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of a path others need too: up to where the last of them leaves it, or goes on."""
        return self._tree.num_needed(hashes)

    def num_tail_tokens(self, parent_hash: BlockHash) -> int:
        """Tokens in the partial blocks after this block."""
        return sum(len(block.token_ids) for block in self._tree.tails_after(parent_hash))

    def hashes_from(self, root: BlockHash, first: BlockHash | None) -> list[BlockHash]:
        """Of the full blocks stored under `root`, or of `first` and what follows it."""
        below = self._tree.below(self._tree.tops(root, first))
        return [block.block_hash for block in below if block.block_hash is not None]

    def is_branch(self, root: BlockHash) -> bool:
        """Does what is stored under `root` begin after a shared block?"""
        return any(block.parent is not None for block in self._tree.roots.get(root) or ())

    def roots_of(self, owner: str) -> list[BlockHash]:
        """Roots under which this owner has something. O(roots): what is under one root has one owner."""
        return [root for root, first_blocks in self._tree.roots.items() if next(iter(first_blocks)).owner == owner]
