"""Paths of blocks whose KV is a function of their hash, so that any wrong payload shows."""

from collections.abc import Sequence
from hashlib import shake_128
from pathlib import Path

import numpy as np

from sessions.hashing import chain_hashes, token_bytes
from sessions.tiers.segment import Anchor, Entry, Payload, SegmentShape
from sessions.tiers.segment_file import SegmentFormat
from sessions.tiers.segment_memory import SegmentMemory
from sessions.tiers.segment_store import SegmentStore
from sessions.types import BlockHash

FORM = SegmentFormat(64, 5000, b"n" * 16, "fake 5")
"""4 blocks a file."""
SHAPE = SegmentShape(FORM.block_size, FORM.block_bytes)
ROOT = BlockHash(b"r" * 16)
CAPACITY = FORM.capacity


def path_of(*branches: int, root: BlockHash = ROOT) -> tuple[list[BlockHash], list[Entry]]:
    """One block per number: its tokens are that number. Equal beginnings are equal blocks."""
    ids = [token for branch in branches for token in [branch] * FORM.block_size]
    hashes = chain_hashes(root, ids, FORM.block_size)
    return hashes, [Entry(h, token_bytes([b] * FORM.block_size)) for h, b in zip(hashes, branches, strict=True)]


def kv_of(entries: Sequence[Entry], form: SegmentShape = FORM) -> Payload:
    """uint8 [len(entries), block_bytes]."""
    data = [np.frombuffer(shake_128(entry.block_hash).digest(form.block_bytes), np.uint8) for entry in entries]
    return np.stack(data)


def rows_of(entries: Sequence[Entry], form: SegmentShape = FORM) -> Payload:
    rows = np.zeros((len(entries), form.stride), np.uint8)
    rows[:, : form.block_bytes] = kv_of(entries, form)
    return rows


def store_path(
    store: SegmentStore,
    *branches: int,
    root: BlockHash = ROOT,
    tenant: BlockHash | None = None,
    head: BlockHash | None = None,
) -> bool:
    """Append what is missing of the path, as the writer does. tenant: the root's own, if it is another. head: the
    shared block that the root begins after."""
    hashes, entries = path_of(*branches, root=root)
    start = store.num_stored(hashes)
    while start < len(hashes):
        parent = hashes[start - 1] if start else head or root
        run = entries[start : start + store.room_after(root, parent)]
        if not store.append(Anchor(root, parent, tenant or root), run, rows_of(run, store.form), store.num_drops):
            return False
        start += len(run)
    return True


def readable(store: SegmentStore, *branches: int, root: BlockHash = ROOT) -> int:
    """How many leading blocks of the path can be read; asserts that what is read is right."""
    hashes, entries = path_of(*branches, root=root)
    count = 0
    for piece in store.pieces(root, hashes, 0):
        expected = entries[piece.position : piece.position + piece.num_blocks]
        payload = store.read(piece, expected)
        if payload is None:
            break
        assert (payload == kv_of(expected, store.form)).all()
        count += piece.num_blocks
    return count


def memory_store(max_bytes: int = 2**30, shared_root: BlockHash | None = None) -> SegmentStore:
    """In memory of the host."""
    memory = SegmentMemory(SHAPE, max_bytes, lambda count, size: np.zeros((count, size), np.uint8))
    return SegmentStore(memory, max_bytes, shared_root)


def files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
