"""Eviction: how much of a trace's prompts a small pool has, by policy: `python -m benchmarks.eviction`.

Drives the product's `BlockPool` as the scheduler does (match, touch, reuse, allocate, register, retain, free), on the
trace's clock and without a model. Beside it, on the same trace and with as many blocks:

    LRU of blocks   each block by itself, whatever follows it
    LRU by leaf     the product's pool with all blocks on one level: a path's tail before its head, and nothing else
    clairvoyant     gives up the block whose next use is farthest away: no policy can do better
    infinite        never gives anything up

The three references store a request when it ends; the pool also has to hold what running requests compute.
"""

import heapq
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Final, Protocol

import click

from benchmarks.eviction_trace import Call, Shape, make_trace
from benchmarks.report import measuring, print_table
from sessions.engine.block import Block
from sessions.engine.block_pool import BlockPool
from sessions.engine.block_tree import Match
from sessions.engine.retention import ONE_SHOT
from sessions.hashing import HashChain
from sessions.types import BlockHash

BLOCK_SIZE: Final = 16
ROOT: Final = BlockHash(bytes(16))


@dataclass(frozen=True, slots=True)
class Hashed:
    """A call and the hashes of its whole blocks, of which the first `num_prompt_blocks` are the prompt's."""

    call: Call
    hashes: list[BlockHash]
    num_prompt_blocks: int


class Cache(Protocol):
    """A policy. `begin` returns how many of the prompt's leading blocks it has; `end` stores prompt and reply."""

    def begin(self, item: Hashed) -> int: ...

    def end(self, item: Hashed) -> None: ...


class Pool:
    """The product's pool; without levels it is LRU by leaf."""

    def __init__(self, num_blocks: int, *, has_levels: bool) -> None:
        self.pool = BlockPool(num_blocks, BLOCK_SIZE)
        self._has_levels = has_levels
        self._running: dict[int, tuple[list[Block], Match, int]] = {}

    def begin(self, item: Hashed) -> int:
        match = self.pool.match(ROOT, item.hashes, item.call.prompt[:-1])
        self.pool.touch(match.blocks)
        level = self.pool.reuse(match, item.hashes) if self._has_levels else ONE_SHOT
        new = self.pool.allocate(len(item.hashes) + 1 - len(match.blocks), item.call.at)
        self._running[id(item)] = ([*match.blocks, *new], match, level)
        return len(match.blocks)

    def end(self, item: Hashed) -> None:
        path, match, level = self._running.pop(id(item))
        tokens = item.call.prompt + item.call.reply
        for index in range(len(match.blocks), len(item.hashes)):
            run = tuple(tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
            parent = path[index - 1] if index else None
            path[index] = self.pool.register_full(path[index], ROOT, parent, item.hashes[index], run)
        self.pool.retain(path, len(tokens), level)
        self.pool.free(path, item.call.ends_at)


class LruOfBlocks:
    """Least recently used block first. With no bound, the infinite cache."""

    def __init__(self, num_blocks: float) -> None:
        self._num_blocks = num_blocks
        self._stored: OrderedDict[BlockHash, None] = OrderedDict()

    def begin(self, item: Hashed) -> int:
        num_stored = 0
        while num_stored < item.num_prompt_blocks and item.hashes[num_stored] in self._stored:
            self._stored.move_to_end(item.hashes[num_stored])
            num_stored += 1
        return num_stored

    def end(self, item: Hashed) -> None:
        for block_hash in item.hashes:
            self._stored[block_hash] = None
            self._stored.move_to_end(block_hash)
        while len(self._stored) > self._num_blocks:
            self._stored.popitem(last=False)


class Clairvoyant:
    """Knows the trace. A block's next use is never later than that of a block after it, so leaves go first."""

    def __init__(self, num_blocks: int, trace: Sequence[Hashed]) -> None:
        self._num_blocks = num_blocks
        self._uses: dict[BlockHash, list[float]] = {}
        for item in trace:
            for block_hash in item.hashes[: item.num_prompt_blocks]:
                self._uses.setdefault(block_hash, []).append(item.call.at)
        self._stored: set[BlockHash] = set()
        self._farthest: list[tuple[float, BlockHash]] = []

    def begin(self, item: Hashed) -> int:
        num_stored = 0
        while num_stored < item.num_prompt_blocks and item.hashes[num_stored] in self._stored:
            num_stored += 1
        return num_stored

    def end(self, item: Hashed) -> None:
        now = item.call.ends_at
        for block_hash in item.hashes:
            self._stored.add(block_hash)
            heapq.heappush(self._farthest, (-self._next_use(block_hash, now), block_hash))
        while len(self._stored) > self._num_blocks:
            was, block_hash = heapq.heappop(self._farthest)
            current = -self._next_use(block_hash, now)
            if current < was:  # used since it was pushed: its next use is farther now
                heapq.heappush(self._farthest, (current, block_hash))
            else:
                self._stored.discard(block_hash)

    def _next_use(self, block_hash: BlockHash, now: float) -> float:
        uses = self._uses.get(block_hash, ())
        index = bisect_right(uses, now)
        return uses[index] if index < len(uses) else inf


def hashed(trace: Sequence[Call]) -> list[Hashed]:
    items = []
    for call in trace:
        chain = HashChain(ROOT, BLOCK_SIZE)
        chain.extend(call.prompt)
        num_prompt_blocks = (len(call.prompt) - 1) // BLOCK_SIZE
        chain.extend(call.reply)
        items.append(Hashed(call, chain.hashes, num_prompt_blocks))
    return items


def hit_rate(cache: Cache, trace: Sequence[Hashed]) -> float:
    """Share of all prompt tokens, in whole blocks, that `cache` has when they are asked for."""
    events = [(item.call.at, 1, index) for index, item in enumerate(trace)]
    events += [(item.call.ends_at, 0, index) for index, item in enumerate(trace)]
    num_hits = 0
    for _, is_begin, index in sorted(events):
        if is_begin:
            num_hits += cache.begin(trace[index])
        else:
            cache.end(trace[index])
    return num_hits * BLOCK_SIZE / sum(len(item.call.prompt) for item in trace)


def hit_rates(trace: Sequence[Hashed], num_blocks: int) -> dict[str, float]:
    """By policy, all on one trace."""
    policies: dict[str, Callable[[], Cache]] = {
        "LRU of blocks": lambda: LruOfBlocks(num_blocks),
        "LRU by leaf": lambda: Pool(num_blocks, has_levels=False),
        "this pool": lambda: Pool(num_blocks, has_levels=True),
        "clairvoyant": lambda: Clairvoyant(num_blocks, trace),
        "infinite": lambda: LruOfBlocks(inf),
    }
    return {name: hit_rate(make(), trace) for name, make in policies.items()}


def footprint(trace: Sequence[Hashed]) -> int:
    """Different blocks in all of the trace."""
    return len({block_hash for item in trace for block_hash in item.hashes})


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Traces per row; medians are printed.")
@click.option("--share", default=0.1, show_default=True, help="Size of the pool as a share of the trace's footprint.")
@click.option("--calls", default=3000, show_default=True, help="About how many requests a trace has.")
@click.option("--quick", is_flag=True, help="One small trace per row.")
def main(seeds: int, share: float, calls: int, quick: bool) -> None:
    """Token hit rates of a small pool over made-up traffic, by policy."""
    seeds, calls = (1, 1000) if quick else (seeds, calls)
    shapes = {
        "half one-shots": Shape(calls),
        "two in ten": Shape(calls, one_shots=0.2),
        "eight in ten": Shape(calls, one_shots=0.8),
        "twice as fast": Shape(calls, duration_s=3600),
    }
    with measuring(f"eviction: a pool of {share:.0%} of what {calls} requests leave behind, {seeds} traces a row"):
        rows = []
        for name, shape in shapes.items():
            traces = (hashed(make_trace(seed, shape)) for seed in range(seeds))
            rates = [hit_rates(trace, int(footprint(trace) * share)) for trace in traces]
            policies = list(rates[0])
            gains = sum(rate["this pool"] > rate["LRU by leaf"] for rate in rates)
            medians = [f"{median(rate[policy] for rate in rates):.1%}" for policy in policies]
            rows.append([name, *medians, f"{gains}/{seeds}"])
        print_table(["", *policies, "beats LRU by leaf"], rows)


if __name__ == "__main__":
    main()
