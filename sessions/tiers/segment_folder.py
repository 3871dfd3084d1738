"""SegmentFolder: segments as files. Outlives the process; owned by one at a time.

    <folder>/lock                     held while a process owns the folder; the system frees it when the process dies
    <folder>/<namespace>/<hash>       one segment each; 0700 and 0600, for KV is readable text to whoever reads it

When a segment was used outlives the process as the time of its file. A file is longer than the index says or as long,
and may vanish or change under a reader, who then finds a miss.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import filelock

from sessions.tiers.segment import Anchor, BadSegment, Contents, Entry, Payload, TierName
from sessions.tiers.segment_file import SegmentFormat, append, create, cut, read_blocks, read_contents


class FolderInUse(Exception):
    """Another process owns the folder."""


class ForeignFile(NamedTuple):
    """A file of another namespace: nothing but bytes that count."""

    path: Path
    num_bytes: int


class SegmentFolder:
    """A `Medium`. Raises OSError or FolderInUse when made. folder: of all namespaces."""

    tier: Final[TierName] = "disk"

    def __init__(self, folder: Path, form: SegmentFormat) -> None:
        self.form = form
        self._folder = folder / form.namespace.hex()
        for made in (folder, self._folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.chmod(0o700)
        self._owner = _own(folder)
        self._foreign = deque(_foreign_files(folder, self._folder.name))

    @property
    def num_other_bytes(self) -> int:
        """Of other namespaces: another model, another secret, an older version."""
        return sum(file.num_bytes for file in self._foreign)

    def make_room(self) -> None:
        self._foreign.popleft().path.unlink(missing_ok=True)

    def found(self) -> tuple[dict[str, Contents], int]:
        """By headers alone."""
        found: dict[str, Contents] = {}
        num_bad = 0
        for item in os.scandir(self._folder):
            path = self._folder / item.name
            try:
                contents = read_contents(path, self.form)
                if contents.entries[0].block_hash.hex() != item.name:
                    raise BadSegment("the name is not its first block's")
                found[item.name] = contents
            except BadSegment:
                num_bad += 1
                path.unlink()
        return found, num_bad

    def append(self, name: str, anchor: Anchor, num_before: int, entries: Sequence[Entry], rows: Payload) -> None:
        """What a failed write leaves behind, a full disk above all, is cut off again."""
        path = self._folder / name
        try:
            if not num_before:
                create(path, self.form, anchor)
            append(path, self.form, anchor, num_before, entries, rows)
        except OSError:
            with contextlib.suppress(OSError):
                self.cut(name, num_before)
            raise

    def cut(self, name: str, num_kept: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # somebody else deleted it
            if num_kept:
                cut(self._folder / name, self.form, num_kept)
            else:
                (self._folder / name).unlink()

    def read(self, name: str, anchor: Anchor, first: int, expected: Sequence[Entry]) -> Payload:
        path = self._folder / name
        payload = read_blocks(path, self.form, anchor, first, expected)
        os.utime(path)
        return payload

    def age_s(self, name: str) -> float:
        now_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        return max(0, now_ns - (self._folder / name).stat().st_mtime_ns) / 1e9

    def names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()}

    def close(self) -> None:
        """Let another process own the folder."""
        self._owner.release()


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
