"""What became of blocks that are no longer stored: a bounded ring of tombstones, so that a miss can be explained.

At most the latest `MAX_LOSSES` are remembered, about 260 bytes each: 17 MB. A hash that is stored again is forgotten.
"""

from collections import OrderedDict
from typing import Final, Literal, NamedTuple

from sessions.types import BlockHash

MAX_LOSSES: Final = 65_536

LossReason = Literal["evicted", "expired", "budget", "dropped"]
"""Evicted: others needed the room. Expired: so they did, and its TTL was over. Budget: its owner's was exceeded.
Dropped: somebody asked for it."""


class Loss(NamedTuple):
    """at: time.monotonic() when the block was given up. age_s: seconds since its last use, then."""

    reason: LossReason
    at: float
    age_s: float


class Losses:
    """The latest losses by block hash."""

    __slots__ = ("_by_hash",)

    def __init__(self) -> None:
        self._by_hash: OrderedDict[BlockHash, tuple[LossReason, float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, block_hash: BlockHash) -> Loss | None:
        loss = self._by_hash.get(block_hash)
        return None if loss is None else Loss(*loss)

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._by_hash

    def record(self, block_hash: BlockHash, reason: LossReason, at: float, age_s: float) -> None:
        """`block_hash` was stored until now. A plain tuple, because this is on every eviction's way."""
        self._by_hash[block_hash] = (reason, at, age_s)
        if len(self._by_hash) > MAX_LOSSES:
            self._by_hash.popitem(last=False)

    def forget(self, block_hash: BlockHash) -> None:
        """`block_hash` is stored again."""
        self._by_hash.pop(block_hash, None)
