"""Picture: a tenant's tree over all tiers, of bounded size: the pool's runs, then what only lower ones have. Pure.

    pool   [A B C D]──[E F G H]──[I J K L]
    disk                  └───────[X Y Z W]──[…]     follows a block of the pool's run, here its second

Segments of a tier whose blocks follow each other without a branch are one run, as in the pool. A run below the pool may
begin in the middle of another: `start` says where.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from sessions.engine.runs import Run, Runs, count_paths
from sessions.tiers import RecentSegment, TierName, without
from sessions.types import BlockHash


class Picture(NamedTuple):
    """runs: each after the one it follows, the pool's first. tiers: where each is; below the pool what is there alone.

    num_left_out: branches that follow nothing that is shown.
    """

    runs: list[Run]
    tiers: list[Literal["pool"] | TierName]
    num_left_out: int


def picture_of(
    pool: Runs,
    segments: Sequence[RecentSegment],
    is_in_pool: Callable[[BlockHash], bool],
    *,
    block_size: int,
    max_runs: int,
) -> Picture:
    """segments: of the same tenant, each after the one it follows. O(blocks of both)."""
    runs, num_left_out = list(pool.shown), pool.num_left_out
    tiers: list[Literal["pool"] | TierName] = ["pool"] * len(runs)
    places = {block_hash: (at, index) for at, run in enumerate(runs) for index, block_hash in enumerate(run.hashes)}
    pieces = [piece for segment in segments if (piece := without(segment, is_in_pool)) is not None]
    followers = Counter(piece.parent for piece in pieces)
    for piece in pieces:
        at, index = (None, -1) if piece.parent is None else places.get(piece.parent, (None, 0))
        before = None if at is None else runs[at]
        continues = at is not None and tiers[at] == piece.tier and followers[piece.parent] == 1
        if at is None or before is None or not continues or index != len(before.hashes) - 1:
            if len(runs) == max_runs or (piece.parent is not None and at is None):
                num_left_out += 1
                continue
            start = 0 if before is None else before.start + (index + 1) * block_size
            at, before = len(runs), Run(at, start, age_s=piece.age_s)
            runs.append(before)
            tiers.append(piece.tier)
        places |= {block_hash: (at, len(before.hashes) + more) for more, block_hash in enumerate(piece.hashes)}
        before.hashes += piece.hashes
        before.num_tokens += len(piece.hashes) * block_size
    count_paths(runs)
    return Picture(runs, tiers, num_left_out)
