"""Two replicas that share one server: `a` holds things, `b` asks for them, and each answer is timed."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterator

from sessions.index import IndexSettings, Lookup, PrefixIndex
from sessions.types import BlockHash

FLEET = b"fingerprint of the model"
ROOT = BlockHash(b"root of a tenant")
BUDGET_S = 0.05
MARGIN_S = 0.1
"""What the machine may add to the budget when it is busy with other things."""
QUICK = IndexSettings(timeout_s=BUDGET_S, beat_s=0.1, lease_s=0.6, breaker_open_s=0.1, cut_delay_s=0.03, max_chains=500)


def chain(name: str, num_blocks: int) -> list[BlockHash]:
    """A chain of hashes; two names share nothing."""
    hashes, parent = [], name.encode()
    for _ in range(num_blocks):
        parent = hashlib.blake2b(parent, digest_size=16).digest()
        hashes.append(BlockHash(parent))
    return hashes


class ReplicaUnderTest:
    """An index and the pool it speaks for, which is a dict: name -> number of blocks."""

    def __init__(self, url: str, settings: IndexSettings = QUICK) -> None:
        self.pool: dict[str, int] = {}
        self.index = PrefixIndex(url, fleet=FLEET, resync_source=self._leaves, settings=settings)

    def hold(self, name: str, num_blocks: int) -> None:
        self.pool[name] = num_blocks
        self.index.publish(ROOT, chain(name, num_blocks))

    def evict(self, name: str, num_blocks: int) -> None:
        """Give up the last `num_blocks` blocks, leaves first."""
        hashes = chain(name, self.pool[name])
        self.pool[name] -= num_blocks
        self.index.evicted(reversed(hashes[self.pool[name] :]))

    def _leaves(self) -> Iterator[tuple[BlockHash, list[BlockHash]]]:
        return iter([(ROOT, chain(name, n)) for name, n in self.pool.items()])


class Fleet:
    """`a` holds things, `b` asks for them."""

    def __init__(self, url: str) -> None:
        self.a, self.b = ReplicaUnderTest(url), ReplicaUnderTest(url)
        self.was_down = False

    async def ask(self, name: str) -> Lookup | None:
        """A lookup as the service makes it: timed."""
        asked_at = time.monotonic()
        lookup = await self.b.index.lookup(ROOT, chain(name, 100))
        assert time.monotonic() - asked_at < BUDGET_S + MARGIN_S
        return lookup

    async def sees(self, name: str, num_blocks: int, *, within_s: float = 5.0) -> None:
        """Wait until `b` is told that `a` has just that much of `name`."""
        expected = Lookup(0, self.a.index.incarnation if num_blocks else None, num_blocks)
        deadline = time.monotonic() + within_s
        while (lookup := await self.ask(name)) != expected:
            assert time.monotonic() < deadline, f"{lookup} is not {expected}: {self.b.index.stats()}"
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[Fleet]:
    fleet.a.index.start()
    fleet.b.index.start()
    try:
        yield fleet
    finally:
        for replica in (fleet.a, fleet.b):
            asked_at = time.monotonic()
            replica.index.stop(1.0)
            assert time.monotonic() - asked_at < 1.0 + MARGIN_S
