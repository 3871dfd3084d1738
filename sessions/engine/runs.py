"""Run: blocks that follow each other without a branch; what is stored as a picture of bounded size. Pure.

    [A B C D]──[E F G H]─┬─[I J K L]──[M . . .]        three runs of 2, 2 and 1 blocks;
                         └─[X Y Z .]                   two paths go through the first

The last used come first, so that what is left out is what went longest without use: a block is held and used together
with its parent, so no run is used later than the one it follows. Work is bounded by the blocks that are looked at, not
by those that are stored.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from typing import NamedTuple

from sessions.engine.block import Block, Children
from sessions.types import BlockHash


@dataclass(slots=True)
class Run:
    """parent: index of the run that this one follows; None after a root. start: tokens before it, declared ones too.

    hashes: of its full blocks; after them it may have less than a block. ref_count: requests that hold its beginning
    now. age_s: since any of it was last used; 0 while held. num_paths: stored paths that go through it, those not shown
    included as far as they were looked at. num_hits: later requests whose match ended in it. num_left_out: branches
    after it that are not shown.
    """

    parent: int | None
    start: int
    age_s: float = 0.0
    ref_count: int = 0
    is_pinned: bool = False
    num_tokens: int = 0
    num_paths: int = 0
    num_hits: int = 0
    num_left_out: int = 0
    hashes: list[BlockHash] = field(default_factory=list)


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

    O(max_blocks log max_runs). Where a block has more children than may be looked at, which of them are is no matter
    of their use.
    """
    walk, num_tops = _Walk(now, max_runs, max_blocks), 0
    for first_blocks in tops:
        num_tops += len(first_blocks)
        walk.add(first_blocks, None)
    while walk.waiting and len(walk.runs) < max_runs:
        walk.next_run()
    num_shown_tops = sum(run.parent is None for run in walk.runs)
    count_paths(walk.runs)
    return Runs(walk.runs, num_tops - num_shown_tops)


class _Walk:
    """Runs so far, and where others begin."""

    def __init__(self, now: float, max_runs: int, max_blocks: int) -> None:
        self.runs: list[Run] = []
        self.waiting: list[_Waiting] = []
        self._now = now
        self._max_runs = max_runs
        self._num_left = max_blocks
        self._order = 0
        self._declared: dict[Block | None, int] = {None: 0}

    def add(self, blocks: Iterable[Block], parent: int | None) -> None:
        """As many of `blocks` as may still be looked at; of those the last used, for no more can be shown."""
        looked_at = list(islice(blocks, self._num_left))
        self._num_left -= len(looked_at)
        if len(looked_at) > self._max_runs:
            looked_at = heapq.nsmallest(self._max_runs, looked_at, _idle_since)
        for block in looked_at:
            heapq.heappush(self.waiting, _Waiting(_idle_since(block), self._order, block, parent))
            self._order += 1

    def next_run(self) -> None:
        """Walk the run that was used last of those that wait."""
        top = heapq.heappop(self.waiting)
        run, block = self._begin(top), top.block
        self.runs.append(run)
        while True:
            run.num_tokens += len(block.token_ids)
            run.num_hits += block.num_hits
            if block.block_hash is not None:
                run.hashes.append(block.block_hash)
            children = block.children
            if children is None or len(children) != 1 or not self._num_left:
                break
            [block] = children
            self._num_left -= 1
        run.num_left_out = len(children or ())
        self.add(children or (), len(self.runs) - 1)

    def _begin(self, top: _Waiting) -> Run:
        block = top.block
        if top.parent is None:
            start = self._num_declared(block.parent)
        else:
            before = self.runs[top.parent]
            before.num_left_out -= 1
            start = _end(before)
        age_s = 0.0 if block.ref_count else self._now - block.last_used_at
        return Run(top.parent, start, age_s, block.ref_count, block.num_pins > 0)

    def _num_declared(self, last: Block | None) -> int:
        """Tokens up to and including `last`, which the operator shares between tenants."""
        num_tokens, block = 0, last
        while block is not None and block not in self._declared:
            num_tokens += len(block.token_ids)
            block = block.parent
        self._declared[last] = num_tokens = num_tokens + self._declared.get(block, 0)
        return num_tokens


def _idle_since(block: Block) -> float:
    """Smaller is later."""
    return -inf if block.ref_count else -block.last_used_at


def count_paths(runs: Sequence[Run]) -> None:
    """Of every run, from those that follow it; one that nothing follows at its end ends a path of its own. Mutates."""
    for run in runs:
        run.num_paths = run.num_left_out
    goes_on = {run.parent for run in runs if run.parent is not None and run.start == _end(runs[run.parent])}
    for at in reversed(range(len(runs))):  # what follows a run stands after it
        run = runs[at]
        run.num_paths += at not in goes_on and not run.num_left_out
        if run.parent is not None:
            runs[run.parent].num_paths += run.num_paths


def _end(run: Run) -> int:
    return run.start + run.num_tokens
