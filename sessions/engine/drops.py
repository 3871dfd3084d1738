"""Drops: what was to be forgotten, so that work which began before that does not bring it back. Pure.

A drop takes a number when it begins. A request notes, when it arrives, the number up to which all drops are over, and
stores nothing of what a later one is about: it may have read that, here or below the pool, before it went.

    drop 1      begin ─────────── end
    drop 2                begin ─────────── end
    settled     0     0     0      0    0    2        a request that arrives meanwhile notes this

What a drop is about is named by keys: a block hash (this block, hence all that follows it), a root, a tenant's name, or
`tails_after` of a block. The engine thread changes it, any may ask.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final

from sessions.hashing import extend_tokens
from sessions.types import BlockHash

MAX_KEYS: Final = 65_536
"""Of the latest drops; about 150 bytes each. Who arrived before an older one stores nothing."""


def tails_after(parent: BlockHash) -> BlockHash:
    """Key of the partial blocks after `parent`. No block has this hash."""
    return extend_tokens(parent, ())


class Drops:
    """One per pool. Raises nothing."""

    def __init__(self) -> None:
        self.settled = 0
        """Drops up to this number are over."""
        self._newest = 0
        self._under_way: set[int] = set()
        self._numbers: OrderedDict[Hashable, int] = OrderedDict()
        self._oldest_known = 0

    def begin(self, keys: Iterable[Hashable]) -> int:
        """From now on nothing that began before stores these. Returns the drop's number. Mutates."""
        self._newest += 1
        self._under_way.add(self._newest)
        for key in keys:
            self._numbers[key] = self._newest
            self._numbers.move_to_end(key)
        while len(self._numbers) > MAX_KEYS:
            self._oldest_known = self._numbers.popitem(last=False)[1]
        return self._newest

    def end(self, number: int) -> None:
        """What was dropped is gone, from every tier: who arrives now has not read it. Mutates."""
        self._under_way.remove(number)
        self.settled = min(self._under_way, default=self._newest + 1) - 1

    def is_newest(self, settled: int) -> bool:
        """Has none begun since that many were settled? Then nothing is barred."""
        return settled >= self._newest

    def bars(self, settled: int, *keys: Hashable) -> bool:
        """Was any of this dropped since that many drops were settled?"""
        if self.is_newest(settled):
            return False
        return settled < self._oldest_known or any(self._numbers.get(key, 0) > settled for key in keys)
