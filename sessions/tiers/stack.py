"""TierStack: all tiers below the pool as one, the fastest first. What a faster one has too is the faster one's.

pool   [ 0 .. 4 ]                               a prompt's blocks, from wherever they are found first
host            [ 5 .. 11 ]
disk                       [ 12 .. 14 ]
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sessions.engine.request import RestoredBlocks
from sessions.hashing import HashChain
from sessions.tiers.segment import Anchor, TierName
from sessions.tiers.segment_store import RecentSegment, TierHolding
from sessions.tiers.tier import Tier, TierStats
from sessions.types import BlockHash


class TierSize(NamedTuple):
    """What a tenant has in a tier, each block counted once; in the pool too or not."""

    num_tokens: int = 0
    num_bytes: int = 0


class TierStack:
    """Threads as for `Tier`. Empty, it has nothing and takes nothing."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = tuple(tiers)

    @property
    def is_empty(self) -> bool:
        return not self._tiers

    # -- engine thread --

    def offer(self, after: Anchor, hashes: Sequence[BlockHash]) -> None:
        for tier in self._tiers:
            tier.offer(after, hashes)

    def removed(self, hashes: Sequence[BlockHash]) -> None:
        for tier in self._tiers:
            tier.removed(hashes)

    # -- event loop --

    async def restore(self, chain: HashChain, token_ids: Sequence[int], num_local: int) -> tuple[RestoredBlocks, ...]:
        """What is worth loading of a prompt after its first `num_local` blocks, without gaps.

        A slower tier goes on only where the faster one ends, not where it was not worth reading.
        """
        restored: tuple[RestoredBlocks, ...] = ()
        for tier in self._tiers:
            num_held = tier.num_held(chain, num_local)
            found = await tier.restore(chain, token_ids, num_local) if num_held else ()
            restored += found
            if sum(len(blocks.payload) for blocks in found) < num_held:
                break
            num_local += num_held
        return restored

    def num_held(self, chain: HashChain, num_local: int) -> dict[TierName, int]:
        """How many blocks of a prompt each tier has after those of the pool and of the faster ones. Reads nothing."""
        held: dict[TierName, int] = {}
        for tier in self._tiers:
            held[tier.name] = tier.num_held(chain, num_local)
            num_local += held[tier.name]
        return held

    # -- any thread --

    def drop(self, root: BlockHash, first: BlockHash | None = None) -> list[BlockHash]:
        """As `SegmentStore.drop`, of all of them; each block is told once. Blocking I/O; raises OSError."""
        dropped = [block_hash for tier in self._tiers for block_hash in tier.store.drop(root, first)]
        return list(dict.fromkeys(dropped))

    def holdings(self, tenant: BlockHash) -> list[TierHolding]:
        """Every path of a tenant's, by the root that it has without a salt; each where it is fastest. Blocking I/O."""
        return [
            holding
            for tier, is_above in self._downwards()
            for holding in tier.store.holdings(tenant)
            if not is_above(holding.leaf_hash)
        ]

    def recent(self, tenant: BlockHash, most: int) -> list[RecentSegment]:
        """As `SegmentStore.recent`, of each tier, without what a faster one has. Blocking I/O."""
        return [
            left
            for tier, is_above in self._downwards()
            for segment in tier.store.recent(tenant, most)
            if (left := without(segment, is_above)) is not None
        ]

    def sizes_of(self, tenant: BlockHash) -> dict[TierName, TierSize]:
        sizes = {}
        for tier in self._tiers:
            num_blocks = tier.store.num_blocks_of(tenant)
            form = tier.store.form
            sizes[tier.name] = TierSize(num_blocks * form.block_size, num_blocks * form.stride)
        return sizes

    def chain_to(self, tenant: BlockHash, leaf: BlockHash) -> tuple[BlockHash, list[BlockHash]] | None:
        """As `SegmentStore.chain_to`, of the first that knows."""
        found = (tier.store.chain_to(tenant, leaf) for tier in self._tiers)
        return next((chain for chain in found if chain is not None), None)

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """As `SegmentStore.num_needed`, the most of them."""
        return max((tier.store.num_needed(hashes) for tier in self._tiers), default=0)

    def stats(self) -> dict[TierName, TierStats]:
        return {tier.name: tier.stats() for tier in self._tiers}

    def close(self, timeout_s: float) -> None:
        for tier in self._tiers:
            tier.close(timeout_s)

    def _downwards(self) -> Iterator[tuple[Tier, Callable[[BlockHash], bool]]]:
        """Each tier, and whether a faster one has a block."""
        for index, tier in enumerate(self._tiers):
            above = self._tiers[:index]
            yield tier, lambda block_hash, above=above: any(it.store.has(block_hash) for it in above)  # type: ignore[misc]


def without(segment: RecentSegment, is_held: Callable[[BlockHash], bool]) -> RecentSegment | None:
    """The segment without its leading blocks that are held; None if all are.

    Bisection is legal because whoever holds blocks is prefix-closed.
    """
    hashes = segment.hashes
    num_held = bisect_left(hashes, True, key=lambda block_hash: not is_held(block_hash))
    if num_held == len(hashes):
        return None
    return segment._replace(parent=hashes[num_held - 1] if num_held else segment.parent, hashes=hashes[num_held:])
