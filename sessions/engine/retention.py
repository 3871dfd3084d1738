"""Which unreferenced block is given up next. Owns levels, TTLs and the free queues; touches nothing but them.

A block's level says how much is lost with it:

    0 one-shot     computed once, asked for by nobody since
    1 continued    a later request went on from it: a session
    2 shared       later requests went different ways from it: a head that sessions have in common
    3.. kept       somebody asked to keep it: one level for each length of time

There is a queue for each level, least recently used first. The block to give up is, of the queues' heads,

    one whose TTL is over; else the oldest below `kept`, where each age counts `HASTE` times; else one that is kept.

It is always a leaf. A path is held as a whole and freed from its tail to its head, and levels rise along the whole path
(`raise_level`, while it is held). So for a child and its parent in the queues

    level(child) <= level(parent),  last_used_at(child) <= last_used_at(parent),  on one level the child stands first.

TTLs do not fall and HASTE does not rise with the level. Hence if the parent's TTL is over, so is that of the child and
of whatever stands before it in its queue, and that queue comes first; and nothing makes the parent count as older.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

from sessions.engine.block import Block

ONE_SHOT: Final = 0
CONTINUED: Final = 1
SHARED: Final = 2
KEPT: Final = 3

DEFAULT_TTL_S: Final = 600.0
"""Ten minutes: 95 % of the reuse in Mooncake's conversation trace comes sooner."""

KEPT_TTL_S: Final = (600.0, 1800.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 604_800.0, inf)
"""A TTL is the least time that something is kept, so it is rounded up to one of these."""

TTL_S: Final = (DEFAULT_TTL_S, DEFAULT_TTL_S, DEFAULT_TTL_S, *KEPT_TTL_S)
"""By level: seconds without use after which a block goes before all that are not so old."""

HASTE: Final = (4.0, 2.0, 1.0)
"""By level below KEPT: how many times its real age a block counts as old."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is asked for a request's blocks, or for those before a breakpoint.

    ttl_s: keep at least that long after the last use; None is `DEFAULT_TTL_S` with no claim to be kept.
    priority: "low" never raises a block, "high" keeps it as an explicit TTL does.
    """

    ttl_s: float | None = None
    priority: Literal["low", "normal", "high"] = "normal"

    @property
    def level(self) -> int:
        """The level that this raises blocks to."""
        if self.priority == "low" or (self.ttl_s is None and self.priority == "normal"):
            return ONE_SHOT
        return KEPT + bisect_left(KEPT_TTL_S, self.ttl_s or DEFAULT_TTL_S)


IMPLICIT: Final = Retention()
"""Nothing was asked for."""


def raise_level(block: Block, level: int) -> None:
    """Bring a held block and those before it to at least `level`. Held blocks stand in no queue, so none moves.

    Stops at the first that is there already, so over a block's life this costs a few steps in all.
    """
    before: Block | None = block
    while before is not None and before.level < level:
        before.level = level
        before = before.parent


def raise_reused(last: Block) -> int:
    """A later request, which holds the path to `last`, goes on after it. Returns the level of what it adds.

    it goes on where the path ended          path: continued     it adds: continued
    others went on differently before        path: shared        it adds: one-shot, until something follows
    """
    last.num_hits += 1
    if last.level == SHARED or any(child.is_full for child in last.children or ()):
        raise_level(last, SHARED)
        return ONE_SHOT
    raise_level(last, CONTINUED)
    return CONTINUED


class FreeQueues:
    """Unreferenced blocks, a queue per level. A block's level must not change while it is in here."""

    __slots__ = ("_below_kept", "_kept", "_queues")

    def __init__(self) -> None:
        self._queues: tuple[OrderedDict[Block, None], ...] = tuple(OrderedDict() for _ in TTL_S)
        self._below_kept = tuple(zip(self._queues[:KEPT], TTL_S[:KEPT], HASTE, strict=True))
        self._kept = tuple(zip(self._queues[KEPT:], KEPT_TTL_S, strict=True))

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __iter__(self) -> Iterator[Block]:
        """Level by level; on each, least recently used first."""
        for queue in self._queues:
            yield from queue

    def add(self, blocks: Iterable[Block]) -> None:
        """At the end, one after another: nothing on a block's level was used later."""
        queues = self._queues
        for block in blocks:
            queues[block.level][block] = None

    def remove(self, blocks: Iterable[Block]) -> None:
        queues = self._queues
        for block in blocks:
            del queues[block.level][block]

    def next(self, now: float) -> tuple[Block, bool]:
        """The block to give up next, and whether its TTL is over. There must be one. Changes nothing.

        See the module's docstring. Where two count as equally old, the lower level goes first.
        """
        chosen: Block | None = None
        most_age = -1.0
        for queue, ttl_s, haste in self._below_kept:
            if queue:
                head = next(iter(queue))
                age = now - head.last_used_at
                if age > ttl_s:
                    return head, True
                if age * haste > most_age:
                    chosen, most_age = head, age * haste
        for queue, ttl_s in self._kept:
            if queue:
                head = next(iter(queue))
                if now - head.last_used_at > ttl_s:
                    return head, True
                chosen = chosen or head
        assert chosen is not None, "nothing is free"
        return chosen, False

    def check_integrity(self) -> None:
        """Raise AssertionError unless a child goes before its parent, whatever the time. O(blocks)."""
        position = {block: index for index, block in enumerate(self)}
        for level, queue in enumerate(self._queues):
            last_used_at = -inf
            for block in queue:
                assert block.level == level, f"{block}: in the queue of another level"
                assert block.last_used_at >= last_used_at, f"{block}: stands after a block that was used later"
                last_used_at = block.last_used_at
                if block.parent in position:
                    assert block.last_used_at <= block.parent.last_used_at, f"{block}: used later than its parent"
                    assert position[block] < position[block.parent], f"{block}: stands after its parent"
