"""KV below the pool: in memory of the host, if the pool is elsewhere, and on disk, where it outlives the process.

stack.py           TierStack: the one door; all tiers as one
tier.py            Tier: one of them
write_behind.py    the thread that copies blocks out of the pool and writes them
restore.py         what a prompt finds in a tier; the thread that reads it
cost.py            load or recompute
segment_store.py   the segments of a tier, their bound, their index
segment_index.py   which segment follows which, and which goes first; pure
segment.py         what a segment is, and what a medium must do
segment_folder.py  segments as files
segment_file.py    the format of a file
segment_memory.py  segments in memory
"""

from sessions.tiers.segment import Anchor, TierName
from sessions.tiers.segment_store import RecentSegment, TierHolding
from sessions.tiers.stack import TierSize, TierStack, without
from sessions.tiers.tier import Surroundings, TierOptions, TierStats, open_tiers

__all__ = [
    "Anchor",
    "RecentSegment",
    "Surroundings",
    "TierHolding",
    "TierName",
    "TierOptions",
    "TierSize",
    "TierStack",
    "TierStats",
    "open_tiers",
    "without",
]
