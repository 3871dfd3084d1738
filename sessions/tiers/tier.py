"""Tier: one place of KV below the pool, with what writes there and what reads. Off unless an operator gives it a size.

    engine thread   removed, offer      after every step
    event loop      restore, stats      before a request is submitted
    any thread      close, drop

A tier that fails costs reuse, never a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sessions.engine.request import RestoredBlocks
from sessions.hashing import HashChain
from sessions.tiers.restore import Restorer
from sessions.tiers.segment import Anchor, SegmentShape, TierName
from sessions.tiers.segment_file import SegmentFormat
from sessions.tiers.segment_folder import FolderInUse, SegmentFolder
from sessions.tiers.segment_memory import SegmentMemory
from sessions.tiers.segment_store import SegmentStore
from sessions.tiers.write_behind import BetweenSteps, Find, KVReader, WriteBehind
from sessions.types import BlockHash

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TierOptions:
    """Which tiers there are. host_bytes, disk_bytes: bounds; 0 is none. folder: of all namespaces' files."""

    kv: KVReader
    host_bytes: int = 0
    disk_bytes: int = 0
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a tier is put into. prefill_rate: tokens per second that the engine computes of prompts, None while nobody
    knows. shared_root: of what the operator declared shared."""

    block_size: int
    find: Find
    between_steps: BetweenSteps
    prefill_rate: Callable[[], float | None]
    shared_root: BlockHash | None


@dataclass(frozen=True, slots=True)
class TierStats:
    """Blocks and bytes there now; the rest counts from the start of the process."""

    blocks: int = 0
    bytes: int = 0
    written_blocks: int = 0
    dropped_paths: int = 0
    loaded_tokens: int = 0
    errors: int = 0
    corrupt: int = 0


class Tier:
    """store: what lies there, and who has it; its own to ask and to drop from."""

    def __init__(self, store: SegmentStore, kv: KVReader, around: Surroundings) -> None:
        self.name: TierName = store.tier
        self.store = store
        self._writer = WriteBehind(store, kv, around.find, around.between_steps)
        self._restorer = Restorer(store, around.prefill_rate)

    def offer(self, after: Anchor, hashes: Sequence[BlockHash]) -> None:
        """Engine thread, after a step: these blocks, from the root's first on, are in the pool, and shall be here."""
        self._writer.offer(after, hashes)

    def removed(self, hashes: Sequence[BlockHash]) -> None:
        """Engine thread, after every step: it took these from the pool."""
        self._writer.removed(hashes)

    async def restore(self, chain: HashChain, token_ids: Sequence[int], num_above: int) -> tuple[RestoredBlocks, ...]:
        """What is here, and worth loading, of a prompt after its first `num_above` blocks. Event loop."""
        return await self._restorer.restore(chain, token_ids, num_above)

    def num_held(self, chain: HashChain, num_above: int) -> int:
        """How many blocks after the first `num_above` are here. Reads nothing. Event loop."""
        return sum(piece.num_blocks for piece in self._restorer.pieces(chain, num_above, len(chain.hashes)))

    def stats(self) -> TierStats:
        return TierStats(
            blocks=self.store.num_blocks,
            bytes=self.store.num_bytes,
            written_blocks=self._writer.num_blocks_written,
            dropped_paths=self._writer.num_paths_dropped,
            loaded_tokens=self._restorer.num_tokens_loaded,
            errors=self._writer.num_errors + self._restorer.num_errors,
            corrupt=self.store.num_corrupt,
        )

    def close(self, timeout_s: float) -> None:
        """Write what waits, for as long as that. The engine must still run."""
        self._restorer.close()
        self._writer.close(timeout_s)
        self.store.close()


def open_tiers(options: TierOptions | None, namespace: bytes, around: Surroundings) -> list[Tier]:
    """The fastest first. Without the disk, after a warning, where its folder cannot be used or is another process's."""
    if options is None:
        return []
    kv, tiers = options.kv, []
    if options.host_bytes:
        shape = SegmentShape(around.block_size, kv.block_bytes)
        memory = SegmentMemory(shape, options.host_bytes, kv.host_rows)
        tiers.append(Tier(SegmentStore(memory, options.host_bytes, around.shared_root), kv, around))
    if options.disk_bytes:
        form = SegmentFormat(around.block_size, kv.block_bytes, namespace, kv.layout)
        try:
            store = SegmentStore(SegmentFolder(options.folder, form), options.disk_bytes, around.shared_root)
        except (OSError, FolderInUse) as error:
            log.warning("disk tier is off", reason=str(error))
        else:
            tiers.append(Tier(store, kv, around))
    return tiers
