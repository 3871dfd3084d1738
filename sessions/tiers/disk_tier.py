"""DiskTier: the one door to KV on disk, for the service. Off unless an operator gives it a size.

    engine thread   removed, offer      after every step
    event loop      restore, stats      before a request is submitted
    any thread      close, drop

A disk that fails costs reuse, never a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from sessions.engine.request import RestoredBlocks
from sessions.hashing import HashChain
from sessions.tiers.restore import Restorer
from sessions.tiers.segment_file import Anchor, SegmentFormat
from sessions.tiers.segment_store import DiskHolding, FolderInUse, RecentSegment, SegmentStore
from sessions.tiers.write_behind import BetweenSteps, Find, KVReader, WriteBehind
from sessions.types import BlockHash

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """folder: of all namespaces. max_bytes: bound of all their files. kv: what is kept there."""

    folder: Path
    max_bytes: int
    kv: KVReader


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Blocks and bytes on disk now; the rest counts from the start of the process."""

    blocks: int = 0
    bytes: int = 0
    written_blocks: int = 0
    dropped_paths: int = 0
    loaded_tokens: int = 0
    errors: int = 0
    corrupt: int = 0


class DiskTier:
    """Made by `open_disk_tier`."""

    def __init__(self, store: SegmentStore, writer: WriteBehind, restorer: Restorer) -> None:
        self._store = store
        self._writer = writer
        self._restorer = restorer

    def offer(self, after: Anchor, hashes: Sequence[BlockHash]) -> None:
        """Engine thread, after a step: these blocks, from the root's first on, are in the pool and shall be on disk."""
        self._writer.offer(after, hashes)

    def removed(self, hashes: Sequence[BlockHash]) -> None:
        """Engine thread, after every step: it took these from the pool."""
        self._writer.removed(hashes)

    async def restore(self, chain: HashChain, token_ids: Sequence[int], num_local: int) -> tuple[RestoredBlocks, ...]:
        """What the disk has, and is worth loading, of a prompt after its first `num_local` blocks. Event loop."""
        return await self._restorer.restore(chain, token_ids, num_local)

    def num_held(self, chain: HashChain, num_local: int) -> int:
        """How many blocks after the first `num_local` are on disk. Reads nothing. Event loop."""
        return sum(piece.num_blocks for piece in self._restorer.pieces(chain, num_local, len(chain.hashes)))

    def drop(self, root: BlockHash, first: BlockHash | None = None) -> list[BlockHash]:
        """Forget, after the pool did, everything under `root`, or block `first` and what follows it.

        Under a tenant's root without a salt is everything of the tenant's, whatever its root. Returns the blocks.
        Blocking I/O; raises OSError.
        """
        return self._store.drop(root, first)

    def holdings(self, tenant: BlockHash) -> list[DiskHolding]:
        """Every path of a tenant's, by the root that it has without a salt; the last used first. Blocking I/O."""
        return self._store.holdings(tenant)

    def recent(self, tenant: BlockHash, most: int) -> list[RecentSegment]:
        """As `SegmentStore.recent`. Blocking I/O."""
        return self._store.recent(tenant, most)

    def num_blocks_of(self, tenant: BlockHash) -> int:
        return self._store.num_blocks_of(tenant)

    @property
    def block_bytes(self) -> int:
        """Of one block, on disk."""
        return self._store.form.stride

    def chain_to(self, tenant: BlockHash, leaf: BlockHash) -> tuple[BlockHash, list[BlockHash]] | None:
        """As `SegmentStore.chain_to`. Any thread."""
        return self._store.chain_to(tenant, leaf)

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """As `SegmentStore.num_needed`. Any thread."""
        return self._store.num_needed(hashes)

    def stats(self) -> DiskStats:
        return DiskStats(
            blocks=self._store.num_blocks,
            bytes=self._store.num_bytes,
            written_blocks=self._writer.num_blocks_written,
            dropped_paths=self._writer.num_paths_dropped,
            loaded_tokens=self._restorer.num_tokens_loaded,
            errors=self._writer.num_errors + self._restorer.num_errors,
            corrupt=self._store.num_corrupt,
        )

    def close(self, timeout_s: float) -> None:
        """Write what waits, for as long as that. The engine must still run."""
        self._restorer.close()
        self._writer.close(timeout_s)
        self._store.close()


def open_disk_tier(
    options: DiskOptions,
    namespace: bytes,
    block_size: int,
    find: Find,
    between_steps: BetweenSteps,
    prefill_rate: Callable[[], float | None],
    shared_root: BlockHash | None,
) -> DiskTier | None:
    """None, after a warning, where the folder cannot be used or belongs to another process.

    shared_root: of what the operator declared shared.
    """
    form = SegmentFormat(namespace, options.kv.layout, block_size, options.kv.block_bytes)
    try:
        store = SegmentStore(options.folder, form, options.max_bytes, shared_root)
    except (OSError, FolderInUse) as error:
        log.warning("disk tier is off", reason=str(error))
        return None
    return DiskTier(store, WriteBehind(store, options.kv, find, between_steps), Restorer(store, prefill_rate))
