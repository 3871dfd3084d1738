"""KV below the pool: on disk, where it outlives the process.

disk_tier.py      DiskTier: the one door
write_behind.py   the thread that copies blocks out of the pool and writes them
restore.py        what a prompt finds on disk; the thread that reads it
cost.py           load or recompute
segment_store.py  the folder, its bound, its index
segment_index.py  which segment follows which, and which goes first; pure
segment_file.py   the format of a file
"""

from sessions.tiers.disk_tier import DiskOptions, DiskStats, DiskTier, open_disk_tier
from sessions.tiers.segment_file import Anchor
from sessions.tiers.segment_store import DiskHolding, RecentSegment

__all__ = ["Anchor", "DiskHolding", "DiskOptions", "DiskStats", "DiskTier", "RecentSegment", "open_disk_tier"]
