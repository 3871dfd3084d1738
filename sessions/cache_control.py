"""CacheControl: what a tenant may see of its own cache, and do to it. Event loop; the pool is asked between two steps.

Every method takes the tenant from the request or by name and looks under that tenant's roots only.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from sessions.engine.block_pool import BlockPool
from sessions.engine.holdings import Holding
from sessions.engine.loop import Engine
from sessions.engine.pins import PinLimitExceeded
from sessions.engine.runs import Runs
from sessions.errors import InvalidRequest
from sessions.hashing import HashChain
from sessions.picture import Picture, picture_of
from sessions.prompting import Prompter
from sessions.replies import Replies
from sessions.sightings import Sightings
from sessions.tiers import DiskHolding, DiskTier
from sessions.types import BlockHash, ChatRequest, Tenant

T = TypeVar("T")

MAX_BLOCKS_PER_LOOK: Final = 4096
"""Blocks that one picture of a tenant's tree looks at: a millisecond or two between two steps."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens of a tenant's in the pool, and of them pinned; its budget, None for none. Tokens and bytes on disk."""

    pool_tokens: int
    pinned_tokens: int
    budget_tokens: int | None
    disk_tokens: int
    disk_bytes: int


class CacheControl:
    """Parts are the service's own."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        replies: Replies,
        sightings: Sightings,
        disk: DiskTier | None,
    ) -> None:
        self._engine = engine
        self._pool: BlockPool = engine.scheduler.pool
        self._prompter = prompter
        self._replies = replies
        self._sightings = sightings
        self._disk = disk

    # -- listing --

    async def holdings(self, tenant: Tenant) -> tuple[list[Holding], int]:
        """Every path that this tenant has in the pool, the last used first; and their tokens, each counted once."""

        def look() -> tuple[list[Holding], int]:
            roots = self._pool.roots_of(tenant.id)
            return self._pool.holdings(roots, time.monotonic()), self._pool.num_tokens(roots)

        holdings, num_tokens = await self._between_steps(look)
        return sorted(holdings, key=lambda holding: holding.age_s), num_tokens

    async def disk_holdings(self, tenant: Tenant) -> list[DiskHolding]:
        """Every path that this tenant has on disk and not in the pool, the last used first."""
        if self._disk is None:
            return []
        found = await asyncio.to_thread(self._disk.holdings, self._unsalted(tenant))
        return [holding for holding in found if self._pool.find(holding.leaf_hash) is None]

    async def picture(self, tenant: Tenant, max_runs: int) -> Picture:
        """What this tenant has as at most so many runs: in the pool, the last used first, then on disk alone."""

        def look() -> Runs:
            roots = self._pool.roots_of(tenant.id)
            return self._pool.runs(roots, time.monotonic(), max_runs=max_runs, max_blocks=MAX_BLOCKS_PER_LOOK)

        runs, segments = await self._between_steps(look), []
        if self._disk is not None:
            segments = await asyncio.to_thread(self._disk.recent, self._unsalted(tenant), max_runs)
        return picture_of(
            runs,
            segments,
            lambda block_hash: self._pool.find(block_hash) is not None,
            block_size=self._pool.block_size,
            max_runs=max_runs,
        )

    async def totals(self, tenant: Tenant) -> Totals:
        """What a tenant has, each block counted once."""

        def look() -> tuple[int, int]:
            roots = self._pool.roots_of(tenant.id)
            return self._pool.num_tokens(roots), self._pool.num_pinned_tokens(roots)

        pool, pinned = await self._between_steps(look)
        num_blocks = 0 if self._disk is None else self._disk.num_blocks_of(self._unsalted(tenant))
        disk_bytes = 0 if self._disk is None else num_blocks * self._disk.block_bytes
        budget = self._pool.budget_of(tenant.id)
        size = self._pool.block_size
        return Totals(pool, pinned, None if budget is None else budget * size, num_blocks * size, disk_bytes)

    # -- pinning and dropping --

    async def pin(self, request: ChatRequest) -> int:
        """Never evict what is stored of these messages. Returns tokens. Raises InvalidRequest past the limit.

        Messages of which every whole block is shared between tenants cannot be pinned: none of it is the caller's.
        """
        chain = await self._path(request)
        try:
            num_blocks = await self._between_steps(lambda: self._pool.pin(chain.branch, chain.hashes))
        except PinLimitExceeded as error:
            raise InvalidRequest(f"Too much is pinned: {error}.", param="messages", code="pin_limit_exceeded") from None
        return num_blocks * self._pool.block_size

    async def unpin(self, request: ChatRequest) -> int:
        """Returns the tokens of the longest pin on these messages, which is undone; 0 if there is none."""
        chain = await self._path(request)
        num_blocks = await self._between_steps(lambda: self._pool.unpin(chain.branch, chain.hashes, time.monotonic()))
        return num_blocks * self._pool.block_size

    async def drop(self, request: ChatRequest) -> int:
        """Forget what is stored of these messages' last block and after it. Returns tokens.

        Shared blocks stay: they are the operator's. What the caller has after them goes.
        """
        chain = await self._path(request)
        if not chain.hashes:
            return 0
        is_own = len(chain.hashes) > chain.num_shared_blocks
        self._replies.forget(chain.root)
        return await self._forget(chain.branch, chain.hashes[-1] if is_own else None)

    async def drop_path(self, tenant: Tenant, leaf_hash: BlockHash) -> int:
        """Forget what this leaf's path shares with no other. Returns tokens; 0 for a leaf that is not the tenant's."""
        found = await self._between_steps(lambda: self._first_own(self._pool.roots_of(tenant.id), leaf_hash))
        if found is None:
            return await self._drop_path_on_disk(tenant, leaf_hash)
        root, first, is_branch = found
        self._replies.forget(self._unsalted(tenant) if is_branch else root)
        return await self._forget(root, first)

    async def _drop_path_on_disk(self, tenant: Tenant, leaf_hash: BlockHash) -> int:
        own = self._unsalted(tenant)
        dropped = None if self._disk is None else await asyncio.to_thread(self._disk.drop_path, own, leaf_hash)
        if dropped is None:
            return 0
        num_blocks, root = dropped
        for replies_root in {own, root}:  # whether the root begins after shared content is not known here
            self._replies.forget(replies_root)
        return num_blocks * self._pool.block_size

    def _first_own(
        self, roots: Collection[BlockHash], leaf_hash: BlockHash
    ) -> tuple[BlockHash, BlockHash | None, bool] | None:
        """Engine thread: where the part of a leaf's path begins that no other has; None if it is under no such root.

        Its root, its first block, and whether that root begins after shared content.
        """
        block = self._pool.find(leaf_hash)
        root = None if block is None else block.root
        if block is None or root not in roots or root is None or any(child.is_full for child in block.children or ()):
            return None
        parent = block.parent
        while parent is not None and parent.root == root and len(parent.children or ()) == 1:
            block, parent = parent, parent.parent
        return root, block.block_hash, self._pool.is_branch(root)

    async def drop_all(self, tenant: Tenant) -> int:
        """Forget everything of a tenant's, whatever its salt: pool, disk, replies here and in Redis. Returns tokens."""
        own = self._unsalted(tenant)
        roots = await self._between_steps(lambda: self._pool.roots_of(tenant.id))
        self._replies.forget(own, and_salts=True)
        self._sightings.forget(tenant)
        return sum([await self._forget(root, None) for root in {own, *roots}])

    def _unsalted(self, tenant: Tenant) -> BlockHash:
        return self._prompter.root_of(tenant.id, None)

    async def _forget(self, root: BlockHash, first: BlockHash | None) -> int:
        """KV alone. On disk whole files go, up to 256 tokens more: better too much than what was to go."""
        num_tokens = await self._between_steps(lambda: self._pool.drop(root, first, time.monotonic()))
        if self._disk is not None:
            await asyncio.to_thread(self._disk.drop, root, first)
        return num_tokens

    async def _path(self, request: ChatRequest) -> HashChain:
        """The blocks of a request's messages."""
        return (await self._prompter.prompt(request, is_open=False)).chain

    async def _between_steps(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._engine.call(function))
