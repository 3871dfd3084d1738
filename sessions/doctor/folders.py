"""The cache folder and the disk tier's: writable, private, with room, and what earlier runs left there. Touches disk.

Writes one file into the cache folder and deletes it; holds for a moment the locks that others would hold, to see
whether somebody does.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from sessions.doctor.finding import Finding, failure, fine, size, warning
from sessions.pool_size import parse_disk_size

LEAST_FREE_BYTES = 2 * 2**30
"""A converted model, compiled kernels and some air."""


def cache_folder(folder: Path) -> Finding:
    """Can it be made, written, and is there room for a converted model?"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"anaphora")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return failure("cache folder", f"{folder}: {error.strerror}", "choose a --cache-dir that can be written.")
    secret = folder / "secret"
    if secret.exists() and secret.stat().st_mode & 0o077:
        return warning(
            "cache folder", f"{secret} can be read by others", f"chmod 600 {secret}: with it, hashes can be tested."
        )
    if partial := _left_behind(folder / "models"):
        return warning(
            "cache folder", f"{partial} is what a crash left of a conversion", "delete it, or start with its model."
        )
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        return warning("cache folder", f"{folder}, {size(free)} free", "make room, or choose another --cache-dir.")
    return fine("cache folder", f"{folder}, writable, {size(free)} free")


def disk_tier(cache_dir: Path, disk_size: str) -> Finding:
    """The folder of KV: whose it is, and whether `disk_size` still fits beside what else is on the disk."""
    folder, wanted = cache_dir / "kv", parse_disk_size(disk_size)
    used, num_namespaces = _usage(folder)
    if not wanted:
        if used:
            return warning(
                "disk tier",
                f"off, and {folder} holds {size(used)} from earlier runs",
                "delete it if it is not wanted (it can be read as text), or set --disk-size.",
            )
        return fine("disk tier", "off")
    if _is_held(folder / "lock"):
        return warning(
            "disk tier", f"{folder} belongs to a running process", "give each process a --cache-dir of its own."
        )
    free = shutil.disk_usage(cache_dir).free
    if free < wanted - used:
        return warning(
            "disk tier",
            f"{size(wanted - used)} more may be written, {size(free)} are free",
            "choose a --disk-size that fits, or make room.",
        )
    if num_namespaces > 1:
        return warning(
            "disk tier",
            f"{size(used)} of {size(wanted)}, of {num_namespaces} models, settings or secrets",
            f"what is not of this one goes when room is needed; delete {folder} to have it at once.",
        )
    return fine("disk tier", f"{size(used)} of {size(wanted)} used, {size(free)} free")


def _left_behind(models: Path) -> Path | None:
    """A conversion that nobody is at any more."""
    partials: Iterator[Path] = models.glob("*.partial")
    return next((path for path in partials if not _is_held(path.with_suffix(".lock"))), None)


def _is_held(path: Path) -> bool:
    """Does a process hold this lock?"""
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


def _usage(folder: Path) -> tuple[int, int]:
    """Bytes below `folder`, and how many of its folders hold a file."""
    sizes = [(path.parent, path.stat().st_size) for path in folder.glob("*/*") if path.is_file()]
    return sum(size for _, size in sizes), len({parent for parent, _ in sizes})
