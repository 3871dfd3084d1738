"""SegmentStore: the folder of segment files, its bound, and what of it is indexed. Any thread; blocking I/O.

    <folder>/lock                     held while a process owns the folder; the system frees it when the process dies
    <folder>/<namespace>/<hash>       one segment each; 0700 and 0600, for KV is readable text to whoever reads it

Over the bound, files of other namespaces (another model, another secret, an older version) go first, then our segments,
least recently used first. When a segment was used outlives the process as the time of its file. Of two locks inside one
is held by whoever changes files, the other guards the index and is never held during I/O: a file is longer than the
index says or as long, and may vanish or change under a reader, who then finds a miss.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import filelock
import structlog

from sessions.tiers.segment_file import (
    Anchor,
    BadSegment,
    Contents,
    Entry,
    Payload,
    SegmentFormat,
    append,
    create,
    cut,
    read_blocks,
    read_contents,
)
from sessions.tiers.segment_index import Piece, Segment, SegmentIndex
from sessions.types import BlockHash

log = structlog.get_logger(__name__)


class FolderInUse(Exception):
    """Another process owns the folder."""


class ForeignFile(NamedTuple):
    """A file of another namespace: nothing but bytes that count."""

    path: Path
    num_bytes: int


class DiskHolding(NamedTuple):
    """A path on disk, as its tenant lists it.

    leaf_hash: of its last block. num_shared_tokens: leading ones that another path has too. age_s: since it was last
    written or read.
    """

    leaf_hash: BlockHash
    num_tokens: int
    num_shared_tokens: int
    num_bytes: int
    age_s: float


class RecentSegment(NamedTuple):
    """Blocks on disk that follow each other. parent: the block before them; None after a root. age_s: since it was last
    written or read."""

    parent: BlockHash | None
    hashes: tuple[BlockHash, ...]
    age_s: float


class SegmentStore:
    """Raises OSError or FolderInUse when made; afterwards `append` and `read` may raise OSError, nothing else does.

    max_bytes: bound of all files together. shared_root: as in `SegmentIndex`.
    """

    def __init__(self, folder: Path, form: SegmentFormat, max_bytes: int, shared_root: BlockHash | None = None) -> None:
        self.form = form
        self.max_bytes = max_bytes
        self.num_corrupt = 0
        """Files that were not what they must be, and are gone."""
        self.num_drops = 0
        """Calls of `drop` that took effect, or are about to."""
        self._folder = folder / form.namespace.hex()
        for made in (folder, self._folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.chmod(0o700)
        self._owner = _own(folder)
        self._files_lock = threading.Lock()
        self._lock = threading.Lock()
        self._index = SegmentIndex(form.capacity, shared_root)
        started_at = time.monotonic()
        self._num_bytes = 0
        self._foreign = deque(_foreign_files(folder, self._folder.name))
        self._scan()
        self._make_room(0, ())
        log.info(
            "disk tier ready",
            blocks=self.num_blocks,
            mib=round(self.num_bytes / 2**20),
            other_mib=round(sum(file.num_bytes for file in self._foreign) / 2**20),
            removed=self.num_corrupt,
            seconds=round(time.monotonic() - started_at, 3),
        )

    def close(self) -> None:
        """Let another process own the folder."""
        self._owner.release()

    @property
    def num_blocks(self) -> int:
        return self._index.num_blocks

    @property
    def num_bytes(self) -> int:
        """Of our own namespace."""
        return self._num_bytes

    # -- lookup --

    def num_stored(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading `hashes` are stored."""
        with self._lock:
            return self._index.num_stored(hashes)

    def pieces(self, root: BlockHash, hashes: Sequence[BlockHash], start: int) -> list[Piece]:
        """Where the leading blocks of `hashes[start:]` are. No I/O; fit for the event loop."""
        with self._lock:
            return self._index.pieces(root, hashes, start)

    def holdings(self, tenant: BlockHash) -> list[DiskHolding]:
        """Every path of a tenant's, the last used first. Blocking I/O."""
        with self._lock:
            paths = self._index.paths_of(tenant)
        size, found = self.form.block_size, []
        for segment, num_blocks, num_shared in reversed(paths):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                age_s = self._age_s(segment.name)
                num_bytes = num_blocks * self.form.stride
                leaf = segment.hashes[-1]
                found.append(DiskHolding(leaf, num_blocks * size, num_shared * size, num_bytes, age_s))
        return found

    def recent(self, tenant: BlockHash, most: int) -> list[RecentSegment]:
        """Up to `most` segments of a tenant's, the last used first, each after the one it follows. Blocking I/O."""
        with self._lock:
            segments = self._index.recent_of(tenant, most)
            copies = [(segment.name, segment.anchor, tuple(segment.hashes)) for segment in segments]
        found = []
        for name, anchor, hashes in copies:
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                parent = None if anchor.parent == anchor.root else anchor.parent
                found.append(RecentSegment(parent, hashes, self._age_s(name)))
        return found

    def _age_s(self, name: str) -> float:
        now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        return max(0, now_ns - self._path(name).stat().st_mtime_ns) / 1e9

    def num_blocks_of(self, tenant: BlockHash) -> int:
        """Blocks of a tenant's, each counted once. O(segments)."""
        with self._lock:
            return sum(len(segment.hashes) for segment in self._index if segment.anchor.tenant == tenant)

    def touch(self, block_hash: BlockHash) -> None:
        """The path up to this block was used now."""
        with self._lock:
            segment = self._index.segment_of(block_hash)
            if segment is not None:
                self._index.touch(segment)

    def room_after(self, root: BlockHash, parent: BlockHash) -> int:
        """How many blocks after `parent` one `append` takes: what its file has room for, or a file of their own."""
        with self._lock:
            growing = self._index.growing(root, parent)
            return self.form.capacity - (len(growing.hashes) if growing else 0)

    # -- files --

    def append(self, after: Anchor, entries: Sequence[Entry], rows: Payload, num_drops: int) -> bool:
        """Store blocks that follow `after.parent`, at most `room_after` of them. One thread only. Raises OSError.

        rows: uint8 [len(entries), stride]. num_drops: as it was before `rows` were copied, so that what is dropped
        meanwhile stays away. False if anything was, if there is no room, or if the parent is not stored any more.
        """
        with self._files_lock:
            return num_drops == self.num_drops and self._append(after, entries, rows)

    def _append(self, after: Anchor, entries: Sequence[Entry], rows: Payload) -> bool:
        hashes = [entry.block_hash for entry in entries]
        with self._lock:
            growing = self._index.growing(after.root, after.parent)
            before = self._index.segment_of(after.parent)
            if before is not None:
                self._index.touch(before)
            elif after.parent != after.root:
                return False
            kept = tuple(before.needed()) if before is not None else ()
        num_before = len(growing.hashes) if growing else 0
        num_bytes = self.form.file_bytes(len(entries)) if growing is None else len(entries) * self.form.stride
        if not self._make_room(num_bytes, kept):
            return False
        path = self._path(growing.name if growing else hashes[0].hex())
        anchor = growing.anchor if growing else after
        try:
            self._write(path, anchor, num_before, entries, rows)
        except FileNotFoundError:
            if growing is None:
                raise
            self._remove(growing)  # somebody else deleted it
            return False
        with self._lock:
            is_stored = self._enter(growing, anchor, hashes)
            self._num_bytes += num_bytes if is_stored else 0
        if not is_stored:
            self._undo(path, num_before)
        return is_stored

    def read(self, piece: Piece, expected: Sequence[Entry]) -> Payload | None:
        """The KV of a piece, uint8 [num_blocks, block_bytes], if the file holds just that.

        None if it is gone meanwhile, or bad: then it is removed with all that follows it. Raises OSError.
        """
        segment, path = piece.segment, self._path(piece.segment.name)
        try:
            payload = read_blocks(path, self.form, segment.anchor, piece.first, expected)
            os.utime(path)
        except (FileNotFoundError, BadSegment) as error:
            self._refuse(piece, expected, error)
            return None
        with self._lock:
            if segment in self._index:
                self._index.touch(segment)
        return payload

    def _refuse(self, piece: Piece, expected: Sequence[Entry], error: Exception) -> None:
        """The file is not what the index says; nor is that anything, where it was dropped meanwhile."""
        with self._files_lock:
            with self._lock:
                is_indexed = self._index.holds(piece, [entry.block_hash for entry in expected])
            if not is_indexed:
                return
            if isinstance(error, BadSegment):
                log.warning("segment refused", name=piece.segment.name, reason=str(error))
                self.num_corrupt += 1
            self._remove(piece.segment)

    def drop(self, root: BlockHash, first: BlockHash | None = None) -> list[BlockHash]:
        """Forget everything under `root`, or block `first` and what follows it; returns the blocks. Raises OSError.

        Under a tenant's root without a salt is everything of the tenant's, whatever its root.
        """
        with self._files_lock:
            self.num_drops += 1
            with self._lock:
                place = None if first is None else self._index.place_of(first)
                whole = self._index.under(root) if first is None else []
            places = [place] if place is not None else [(segment, 0) for segment in whole]
            return [block_hash for segment, index in places for block_hash in self._cut(segment, index)]

    def chain_to(self, tenant: BlockHash, leaf: BlockHash) -> tuple[BlockHash, list[BlockHash]] | None:
        """(root, hashes from its first block on) of the path to a block; None if the tenant has no such. No I/O."""
        with self._lock:
            segment = self._index.segment_of(leaf)
            if segment is None or segment.anchor.tenant != tenant:
                return None
            return segment.anchor.root, self._index.chain_to(leaf)

    def num_needed(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading blocks of a path other paths on disk need too. No I/O."""
        with self._lock:
            return self._index.num_needed(hashes)

    def check_integrity(self) -> None:
        """Raise AssertionError unless index, files and sizes agree. Only while nobody writes."""
        with self._lock:
            self._index.check_integrity()
            assert self._num_bytes == self._size_of(list(self._index)), "the byte count is wrong"
            names = {segment.name for segment in self._index}
        assert names == {path.name for path in self._folder.iterdir()}, "files and index disagree"

    # -- inside --

    def _enter(self, growing: Segment | None, anchor: Anchor, hashes: Sequence[BlockHash]) -> bool:
        """Index what was written; the lock is held. False if it does not join what is stored any more."""
        if growing is None:
            return self._index.add(anchor, hashes) is not None
        if growing not in self._index:
            return False
        self._index.extend(growing, hashes)
        return True

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _size_of(self, segments: Sequence[Segment]) -> int:
        return sum(self.form.file_bytes(len(segment.hashes)) for segment in segments)

    def _write(self, path: Path, anchor: Anchor, num_before: int, entries: Sequence[Entry], rows: Payload) -> None:
        """What a failed write leaves behind, a full disk above all, is cut off again."""
        try:
            if not num_before:
                create(path, self.form, anchor)
            append(path, self.form, anchor, num_before, entries, rows)
        except OSError:
            with contextlib.suppress(OSError):
                self._undo(path, num_before)
            raise

    def _undo(self, path: Path, num_before: int) -> None:
        """What was written does not count. What the file had before does."""
        if num_before:
            cut(path, self.form, num_before)
        else:
            path.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int, kept: Sequence[Segment]) -> bool:
        """Delete what goes first until `num_bytes` more fit; False if only `kept` is left to go. Raises OSError."""
        while self._num_bytes + sum(file.num_bytes for file in self._foreign) + num_bytes > self.max_bytes:
            if self._foreign:
                self._foreign.popleft().path.unlink(missing_ok=True)
                continue
            with self._lock:
                oldest = self._index.oldest()
            if oldest is None or oldest in kept:
                return False
            self._remove(oldest)
        return True

    def _remove(self, segment: Segment) -> None:
        """Forget a segment and all that follows it."""
        self._cut(segment, 0)

    def _cut(self, segment: Segment, num_kept: int) -> list[BlockHash]:
        """Forget what a segment has after its first blocks, and all that follows that; then change the files.

        Leaves go first. Returns the blocks.
        """
        with self._lock:
            if segment not in self._index:
                return []
            num_cut = len(segment.hashes) - num_kept if num_kept else 0
            hashes, removed = self._index.cut(segment, num_kept)
            self._num_bytes -= self._size_of(removed) + num_cut * self.form.stride
        for gone in removed:
            self._path(gone.name).unlink(missing_ok=True)
        if num_kept:
            with contextlib.suppress(FileNotFoundError):  # somebody else deleted it
                cut(self._path(segment.name), self.form, num_kept)
        return hashes

    def _scan(self) -> None:
        """Index what is there, by headers alone. A file that is bad, or follows nothing, is removed."""
        found: dict[BlockHash, Contents] = {}
        for item in os.scandir(self._folder):
            path = self._folder / item.name
            try:
                contents = read_contents(path, self.form)
                if contents.entries[0].block_hash.hex() != item.name:
                    raise BadSegment("the name is not its first block's")
                found[contents.entries[0].block_hash] = contents
            except BadSegment:
                self.num_corrupt += 1
                path.unlink()
        self._adopt(found)

    def _adopt(self, found: dict[BlockHash, Contents]) -> None:
        """Add segments in the order of their paths, then put them in the order of their last use."""
        after: dict[BlockHash, list[BlockHash]] = {}
        for name, contents in found.items():
            after.setdefault(contents.anchor.parent, []).append(name)
        adopted: list[tuple[int, Segment]] = []
        pending = [contents.anchor.root for contents in found.values()]
        while pending:
            for name in after.pop(pending.pop(), ()):
                anchor, entries, used_at_ns = found[name]
                segment = self._index.add(anchor, [entry.block_hash for entry in entries])
                if segment is not None:
                    del found[name]
                    pending += segment.hashes
                    adopted.append((used_at_ns, segment))
        for _, segment in sorted(adopted, key=lambda pair: pair[0]):
            self._index.touch(segment)
        self._num_bytes = self._size_of([segment for _, segment in adopted])
        for name in found:
            self.num_corrupt += 1
            self._path(name.hex()).unlink()


def _own(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / "lock", mode=0o600, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise FolderInUse(f"another process uses {folder}") from None
    return lock


def _foreign_files(folder: Path, our_name: str) -> list[ForeignFile]:
    """Files of the other namespaces, oldest first."""
    found = []
    for namespace in folder.iterdir():
        if namespace.is_dir() and namespace.name != our_name:
            found += [(path, path.stat()) for path in namespace.iterdir() if path.is_file()]
    found.sort(key=lambda pair: pair[1].st_mtime_ns)
    return [ForeignFile(path, status.st_size) for path, status in found]
