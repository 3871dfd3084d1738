"""CacheControl: what a tenant may see of its own cache, and do to it. Event loop; the pool is asked between two steps.

Every method takes the tenant from the request or by name and looks under that tenant's roots only.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from sessions.engine.block_pool import BlockPool
from sessions.engine.drops import tails_after
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
from sessions.tiers import TierHolding, TierName, TierSize, TierStack
from sessions.types import BlockHash, ChatRequest, Tenant

T = TypeVar("T")

MAX_BLOCKS_PER_LOOK: Final = 4096
"""Blocks that one picture of a tenant's tree looks at: a millisecond or two between two steps."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens of a tenant's in the pool, and of them pinned; its budget, None for none. below: in each tier."""

    pool_tokens: int
    pinned_tokens: int
    budget_tokens: int | None
    below: Mapping[TierName, TierSize]


class _Place(NamedTuple):
    """Everything under a root; or the block `first` under it, and what follows."""

    root: BlockHash
    first: BlockHash | None = None

    @property
    def key(self) -> BlockHash:
        """For `Drops`."""
        return self.root if self.first is None else self.first


@dataclass(frozen=True, slots=True)
class _Doomed:
    """What a drop takes. keys: what it is about, for `Drops`. replies_roots: under which replies are forgotten.

    tails_of: a block of which the partial ones after it go. of_tenant: whose is all of it, under every salt.
    """

    keys: Sequence[BlockHash | str]
    places: Sequence[_Place]
    replies_roots: Collection[BlockHash]
    tails_of: BlockHash | None = None
    of_tenant: Tenant | None = None


class CacheControl:
    """Parts are the service's own."""

    def __init__(
        self,
        engine: Engine,
        prompter: Prompter,
        replies: Replies,
        sightings: Sightings,
        tiers: TierStack,
    ) -> None:
        self._engine = engine
        self._pool: BlockPool = engine.scheduler.pool
        self._prompter = prompter
        self._replies = replies
        self._sightings = sightings
        self._tiers = tiers
        self._under_way: set[asyncio.Task[int]] = set()

    # -- listing --

    async def holdings(self, tenant: Tenant) -> tuple[list[Holding], int]:
        """Every path that this tenant has in the pool, the last used first; and their tokens, each counted once."""

        def look() -> tuple[list[Holding], int]:
            roots = self._pool.census.roots_of(tenant.id)
            return self._pool.census.holdings(roots, time.monotonic()), self._pool.census.num_tokens(roots)

        holdings, num_tokens = await self._between_steps(look)
        return sorted(holdings, key=lambda holding: holding.age_s), num_tokens

    async def holdings_below(self, tenant: Tenant) -> list[TierHolding]:
        """Every path that this tenant has and not in the pool, tier by tier, the last used first."""
        found = await asyncio.to_thread(self._tiers.holdings, self._unsalted(tenant))
        return [holding for holding in found if self._pool.find(holding.leaf_hash) is None]

    async def picture(self, tenant: Tenant, max_runs: int) -> Picture:
        """What this tenant has as at most so many runs: in the pool, the last used first, then below it alone."""

        def look() -> Runs:
            roots = self._pool.census.roots_of(tenant.id)
            return self._pool.census.runs(roots, time.monotonic(), max_runs=max_runs, max_blocks=MAX_BLOCKS_PER_LOOK)

        runs = await self._between_steps(look)
        return picture_of(
            runs,
            await asyncio.to_thread(self._tiers.recent, self._unsalted(tenant), max_runs),
            lambda block_hash: self._pool.find(block_hash) is not None,
            block_size=self._pool.block_size,
            max_runs=max_runs,
        )

    async def totals(self, tenant: Tenant) -> Totals:
        """What a tenant has, each block counted once."""

        def look() -> tuple[int, int]:
            roots = self._pool.census.roots_of(tenant.id)
            return self._pool.census.num_tokens(roots), self._pool.census.num_pinned_tokens(roots)

        pool, pinned = await self._between_steps(look)
        budget = self._pool.budget_of(tenant.id)
        budget_tokens = None if budget is None else budget * self._pool.block_size
        return Totals(pool, pinned, budget_tokens, self._tiers.sizes_of(self._unsalted(tenant)))

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

        Shared blocks stay: they are the operator's. What the caller has after them goes, wherever it leaves them.
        Messages that fill no block are too short to be found again.
        """
        chain = await self._path(request)
        if not chain.hashes:
            return 0
        is_own = len(chain.hashes) > chain.num_shared_blocks
        places = [_Place(chain.branch, chain.hashes[-1])] if is_own else list(map(_Place, chain.branches_after()))
        doomed = _Doomed([place.key for place in places], places, {chain.root})
        return await self._forget(lambda: doomed)

    async def drop_path(self, tenant: Tenant, leaf_hash: BlockHash) -> int:
        """Forget what no other path needs of those that end in this block: neither one in the pool nor one below it.

        Returns tokens; 0 for a block that is not the tenant's.
        """
        return await self._forget(lambda: self._own_part(tenant, leaf_hash))

    async def drop_all(self, tenant: Tenant) -> int:
        """Forget everything of a tenant's, whatever its salt: pool, tiers, replies here and in Redis."""
        own = self._unsalted(tenant)

        def choose() -> _Doomed:
            roots = {own, *self._pool.census.roots_of(tenant.id)}
            return _Doomed([tenant.id], list(map(_Place, roots)), {own}, of_tenant=tenant)

        return await self._forget(choose)

    def _own_part(self, tenant: Tenant, leaf_hash: BlockHash) -> "_Doomed | None":
        """Engine thread. None where there is nothing."""
        own = self._unsalted(tenant)
        block = self._pool.find(leaf_hash)
        path = self._pool.chain_to(block) if block is not None else None
        if path is not None and path[0] in self._pool.census.roots_of(tenant.id):
            root, hashes = path
            replies_roots = {own if self._pool.census.is_branch(root) else root}
        elif (path := self._tiers.chain_to(own, leaf_hash)) is not None:
            root, hashes = path
            replies_roots = {own, root}  # whether the root begins after shared content is not known here
        else:
            return None
        num_needed = max(self._pool.census.num_needed(hashes), self._tiers.num_needed(hashes))
        if num_needed < len(hashes):
            place = _Place(root, hashes[num_needed])
            return _Doomed([place.key], [place], replies_roots)
        num_tokens = self._pool.census.num_tail_tokens(leaf_hash)
        return _Doomed([tails_after(leaf_hash)], [], replies_roots, tails_of=leaf_hash) if num_tokens else None

    def _unsalted(self, tenant: Tenant) -> BlockHash:
        return self._prompter.root_of(tenant.id, None)

    async def _forget(self, choose: "Callable[[], _Doomed | None]") -> int:
        """To its end, whatever becomes of who asked. choose: on the engine thread. Returns tokens."""
        task = asyncio.ensure_future(self._forget_chosen(choose))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _forget_chosen(self, choose: "Callable[[], _Doomed | None]") -> int:
        """Pool, then replies, then tiers: what is written is read from the pool. What runs meanwhile stores nothing."""
        given_up = await self._between_steps(lambda: self._give_up(choose()))
        if given_up is None:
            return 0
        doomed, number, num_tokens, from_pool = given_up
        below: list[BlockHash] = []
        try:
            for root in doomed.replies_roots:
                self._replies.forget(root, and_salts=doomed.of_tenant is not None)
            if doomed.of_tenant is not None:
                self._sightings.forget(doomed.of_tenant)
            for place in doomed.places:
                below += await asyncio.to_thread(self._tiers.drop, place.root, place.first)
        finally:
            below = [block_hash for block_hash in below if block_hash not in from_pool]
            await self._between_steps(lambda: self._end_drop(number, below))
        return num_tokens + len(below) * self._pool.block_size

    def _give_up(self, doomed: "_Doomed | None") -> "tuple[_Doomed, int, int, set[BlockHash]] | None":
        """Engine thread. Returns the drop's number, and what the pool had: tokens, and full blocks."""
        if doomed is None:
            return None
        number, now = self._pool.drops.begin(doomed.keys), time.monotonic()
        hashes = {block_hash for place in doomed.places for block_hash in self._pool.census.hashes_from(*place)}
        num_tokens = sum(self._pool.drop(*place, now) for place in doomed.places)
        if doomed.tails_of is not None:
            num_tokens += self._pool.drop_tails(doomed.tails_of, now)
        return doomed, number, num_tokens, hashes

    def _end_drop(self, number: int, below: Sequence[BlockHash]) -> None:
        """Engine thread. below: what only the tiers had."""
        self._pool.was_dropped(below, time.monotonic())
        self._pool.drops.end(number)

    async def _path(self, request: ChatRequest) -> HashChain:
        """The blocks of a request's messages."""
        return (await self._prompter.prompt(request, is_open=False)).chain

    async def _between_steps(self, function: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._engine.call(function))
