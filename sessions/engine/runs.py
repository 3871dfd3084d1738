"""Run: blocks that follow each other without a branch; what is stored as a picture of bounded size. Pure.

    [A B C D]──[E F G H]─┬─[I J K L]──[M . . .]        three runs of 2, 2 and 1 blocks;
                         └─[X Y Z .]                   two paths go through the first

The last used come first, so that what is left out is what went longest without use: a block is held and used together
with its parent, so no run is used later than the one it follows. Work is bounded by the blocks that are looked at, not
by those that are stored.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import NamedTuple

from sessions.engine.block import Block, Children
from sessions.types import BlockHash


@dataclass(slots=True)
class Run:
    """parent: index of the run that this one follows; None after a root.

    first_hash, last_hash: of its first and last full block; None where there is none. start: tokens before it, declared
    ones included. ref_count: requests that hold its beginning now. num_paths: stored paths that go through it, those
    not shown included as far as they were looked at. num_hits: later requests whose match ended in it. age_s: since any
    of it was last used; 0 while held. num_left_out: branches after it that are not shown.
    """

    parent: int | None
    first_hash: BlockHash | None
    last_hash: BlockHash | None
    start: int
    ref_count: int
    age_s: float
    is_pinned: bool
    num_tokens: int = 0
    num_paths: int = 0
    num_hits: int = 0
    num_left_out: int = 0


class Runs(NamedTuple):
    """Runs, every one after the one it follows; and how many first blocks are not among them, with what follows."""

    shown: list[Run]
    num_left_out: int


class _Waiting(NamedTuple):
    """A block that begins a run which was not walked yet. Ordered: the last used first."""

    idle_since: float
    order: int
    block: Block
    parent: int | None


def list_runs(tops: Iterable[Children | tuple[()]], now: float, *, max_runs: int, max_blocks: int) -> Runs:
    """What is stored from the first blocks of some roots on, as at most `max_runs` runs.

    O(max_blocks log max_blocks). Where a block has more children than may be looked at, which of them are is no matter
    of their use.
    """
    walk, num_tops = _Walk(now, max_blocks), 0
    for first_blocks in tops:
        num_tops += len(first_blocks)
        walk.add(first_blocks, None)
    while walk.waiting and len(walk.runs) < max_runs:
        walk.next_run()
    num_shown_tops = sum(run.parent is None for run in walk.runs)
    _count_paths(walk.runs)
    return Runs(walk.runs, num_tops - num_shown_tops)


class _Walk:
    """Runs so far, and where others begin."""

    def __init__(self, now: float, max_blocks: int) -> None:
        self.runs: list[Run] = []
        self.waiting: list[_Waiting] = []
        self._now = now
        self._num_left = max_blocks
        self._order = 0
        self._declared: dict[Block | None, int] = {None: 0}

    def add(self, blocks: Iterable[Block], parent: int | None) -> None:
        """As many of `blocks` as may still be looked at."""
        for block in islice(blocks, self._num_left):
            idle_since = -inf if block.ref_count else -block.last_used_at
            heapq.heappush(self.waiting, _Waiting(idle_since, self._order, block, parent))
            self._order += 1
            self._num_left -= 1

    def next_run(self) -> None:
        """Walk the run that was used last of those that wait."""
        top = heapq.heappop(self.waiting)
        run, block = self._begin(top), top.block
        self.runs.append(run)
        while True:
            run.num_tokens += len(block.token_ids)
            run.num_hits += block.num_hits
            run.last_hash = block.block_hash or run.last_hash
            children = block.children
            if children is None or len(children) != 1 or not self._num_left:
                break
            [block] = children
            self._num_left -= 1
        run.num_left_out = len(children or ())
        self.add(children or (), len(self.runs) - 1)

    def _begin(self, top: _Waiting) -> Run:
        block, start = top.block, 0
        if top.parent is not None:
            before = self.runs[top.parent]
            before.num_left_out -= 1
            start = before.start + before.num_tokens
        return Run(
            top.parent,
            block.block_hash,
            None,
            start if top.parent is not None else self._num_declared(block.parent),
            block.ref_count,
            0.0 if block.ref_count else self._now - block.last_used_at,
            block.num_pins > 0,
        )

    def _num_declared(self, last: Block | None) -> int:
        """Tokens up to and including `last`, which the operator shares between tenants."""
        num_tokens, block = 0, last
        while block is not None and block not in self._declared:
            num_tokens += len(block.token_ids)
            block = block.parent
        self._declared[last] = num_tokens = num_tokens + self._declared.get(block, 0)
        return num_tokens


def _count_paths(runs: list[Run]) -> None:
    for run in reversed(runs):  # what follows a run stands after it
        run.num_paths += run.num_left_out
        run.num_paths = max(run.num_paths, 1)
        if run.parent is not None:
            runs[run.parent].num_paths += run.num_paths
