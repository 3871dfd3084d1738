"""LowerTiers: host memory, disk and other replicas, as seen from the pool: what they have of a prompt, and are told.

engine thread   stored, removed ──▶ tiers, which copy between two steps
event loop      stored, removed ──▶ index;  a prompt ──▶ index, tiers ──▶ restored blocks
index thread    resync ──▶ the pool's chains, a few at a time between two steps
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sessions.engine.block_pool import BlockPool
from sessions.engine.loop import Engine, StepResult
from sessions.engine.request import RestoredBlocks
from sessions.hashing import HashChain
from sessions.index import PrefixIndex, open_index
from sessions.parts import ServiceParts
from sessions.tiers import Anchor, Surroundings, TierStack, open_tiers
from sessions.types import BlockHash

CALL_TIMEOUT_S = 10.0
"""How long another thread waits for the engine to answer between two steps."""

CHAINS_PER_CALL = 64
"""Paths that are followed between two steps: about a millisecond for long ones."""


class LowerTiers:
    """One per service. fleet: names model and secret; what another fleet has is never seen.

    shared_root: of what the operator declared shared.
    """

    def __init__(self, parts: ServiceParts, engine: Engine, fleet: BlockHash, shared_root: BlockHash | None) -> None:
        self._engine = engine
        self._pool: BlockPool = engine.scheduler.pool
        self.num_elsewhere_tokens = 0
        """Prompt tokens that only another replica had, as Redis said."""
        options = parts.index
        self.index: PrefixIndex = open_index(
            options.mode,
            options.redis_url or None,
            fleet=fleet,
            resync_source=self._leaf_chains,
            settings=replace(options.client, timeout_s=options.timeout_ms / 1000),
            data=options.data,
        )
        around = Surroundings(
            self._pool.block_size,
            find=self._pool.find,
            between_steps=engine.call,
            prefill_rate=lambda: engine.scheduler.prefill_rate.value,
            shared_root=shared_root,
        )
        self.tiers = TierStack(open_tiers(parts.tiers, fleet, around))

    # -- a prompt: event loop --

    async def restore(self, chain: HashChain, token_ids: Sequence[int]) -> tuple[RestoredBlocks, ...]:
        """What only the tiers hold of the prompt, where loading beats computing; asks first who else has it."""
        await self._ask_index(chain)
        return await self.tiers.restore(chain, token_ids, self._pool.num_cached_prefix_blocks(chain.hashes))

    async def _ask_index(self, chain: HashChain) -> None:
        """Redis, only where it can know more than the pool: a live peer exists and the pool misses some of it."""
        num_local = self._pool.num_cached_prefix_blocks(chain.hashes)
        if num_local < len(chain.hashes) and self.index.should_ask():
            num_elsewhere = await self.index.num_elsewhere(chain, num_local)
            self.num_elsewhere_tokens += num_elsewhere * self._pool.block_size

    # -- what a step stored and removed --

    def offer(self, result: StepResult, tenant_root: Callable[[str, str | None], BlockHash]) -> None:
        """Engine thread: what the tiers may write. tenant_root: of a tenant's id, and of no salt."""
        if self.tiers.is_empty:
            return
        self.tiers.removed(result.removed)
        for output in result.outputs:
            parent: BlockHash | None = None
            for root, hashes, owner in output.stored:
                tenant = root if owner is None else tenant_root(owner, None)
                self.tiers.offer(Anchor(root, parent or root, tenant), hashes)
                parent = hashes[-1]

    def publish(self, result: StepResult) -> None:
        """Event loop. Removals first: evicted when the step was planned, and perhaps stored anew when committed."""
        if result.removed:
            self.index.evicted(result.removed)
        for output in result.outputs:
            for root, hashes, _ in output.stored:
                self.index.publish(root, hashes)

    def _leaf_chains(self) -> Iterator[tuple[BlockHash, list[BlockHash]]]:
        """Index thread: the pool's chains, a few at a time between two steps. Paths that go meanwhile are left out."""
        leaves = self._engine.call(self._pool.leaves).result(CALL_TIMEOUT_S)
        for start in range(0, len(leaves), CHAINS_PER_CALL):
            some = leaves[start : start + CHAINS_PER_CALL]
            chains = self._engine.call(lambda some=some: [self._pool.chain_to(leaf) for leaf in some])  # type: ignore[misc]
            yield from (chain for chain in chains.result(CALL_TIMEOUT_S) if chain is not None)

    # -- state --

    async def close(self) -> None:
        """The engine must still run: the tiers' last copies are made between steps."""
        await asyncio.to_thread(self.tiers.close, CALL_TIMEOUT_S)
        await asyncio.to_thread(self.index.stop, 1.0)
