"""Segment files, format `anaphora-kv/1`: up to 256 tokens of consecutive blocks of one path, with their KV.

    0           magic, 16 bytes
    16          u32 length and u32 crc32 of the header, little-endian like everything here
    24          header: msgpack map of what `SegmentFormat` and the segment's `Anchor` say
    entries_at  `capacity` entries:   block hash ‖ crc32 of the payload ‖ token ids, u32 each ‖ crc32 of the entry
    data_at     `capacity` payloads, each from a page on: the block's bytes as `KVCache.read_blocks` gives them

A file grows at its end: a block's payload is written first, its entry after it. So a process killed at any point leaves
the blocks before intact and this one absent; after a power cut a torn payload misses its checksum. An entry's checksum
is seeded with the header's: no entry is taken for another file's. Nothing is ever unpickled, and nothing of a header is
believed that the reader does not expect already.

Functions do blocking I/O, raise OSError, and BadSegment for content that is not what it must be.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Final

import msgpack
import numpy as np

from sessions.hashing import DIGEST_BYTES, TOKEN_BYTES
from sessions.tiers.segment import Anchor, BadSegment, Contents, Entry, Payload, SegmentShape
from sessions.types import BlockHash

MAGIC: Final = b"anaphora-kv/1\n\0\0"
_PAGE: Final = 4096
_PREFIX: Final = struct.Struct("<16sII")
_U32: Final = struct.Struct("<I")


@dataclass(frozen=True)
class SegmentFormat(SegmentShape):
    """What all files of one namespace have in common.

    namespace: fingerprint of model, numerics, template and secret. layout: shapes and dtype of a block's bytes.
    """

    namespace: bytes
    layout: str

    @property
    def stride(self) -> int:
        """Bytes from one payload to the next."""
        return _round_up(self.block_bytes, _PAGE)

    @property
    def entry_bytes(self) -> int:
        return DIGEST_BYTES + _U32.size + self.block_size * TOKEN_BYTES + _U32.size

    @cached_property
    def entries_at(self) -> int:
        nothing = BlockHash(bytes(DIGEST_BYTES))
        return len(self.head(Anchor(nothing, nothing, nothing)))

    @cached_property
    def data_at(self) -> int:
        return _round_up(self.entries_at + self.capacity * self.entry_bytes, _PAGE)

    def head(self, anchor: Anchor) -> bytes:
        """The bytes before the entries; as long for every anchor."""
        header = {
            "namespace": self.namespace,
            "layout": self.layout,
            "block_size": self.block_size,
            "block_bytes": self.block_bytes,
            "root": anchor.root,
            "parent": anchor.parent,
            "tenant": anchor.tenant,
        }
        packed: bytes = msgpack.packb(header)
        return _PREFIX.pack(MAGIC, len(packed), zlib.crc32(packed)) + packed

    def segment_bytes(self, num_blocks: int) -> int:
        return self.data_at + num_blocks * self.stride


def create(path: Path, form: SegmentFormat, anchor: Anchor) -> None:
    """A new file without blocks, readable by its owner only. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        _write(file, form.head(anchor))


def append(
    path: Path, form: SegmentFormat, anchor: Anchor, num_before: int, entries: Sequence[Entry], rows: Payload
) -> None:
    """Add blocks after the `num_before` that are there; what stands behind those is overwritten.

    rows: [len(entries), stride]. A failure leaves the file as it counted before.
    """
    seed = _seed(form.head(anchor))
    with path.open("r+b", buffering=0) as file:
        file.seek(form.data_at + num_before * form.stride)
        _write(file, rows.data.cast("B"))
        packed = b"".join(
            _pack_entry(entry, zlib.crc32(row[: form.block_bytes].data), seed)
            for entry, row in zip(entries, rows, strict=True)
        )
        file.seek(form.entries_at + num_before * form.entry_bytes)
        _write(file, packed)


def cut(path: Path, form: SegmentFormat, num_blocks: int) -> None:
    """Keep the first blocks only: of the others neither ids nor KV are left, whenever the process is killed here."""
    with path.open("r+b", buffering=0) as file:
        file.seek(form.entries_at + num_blocks * form.entry_bytes)
        _write(file, bytes((form.capacity - num_blocks) * form.entry_bytes))
        file.truncate(form.segment_bytes(num_blocks))


def read_contents(path: Path, form: SegmentFormat) -> Contents:
    """Header and entries, without the payloads. Entries from the first bad or cut-off one on do not count."""
    with path.open("rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        head = file.read(form.data_at)
    anchor = _check_head(head, form)
    num_payloads = max(0, status.st_size - form.data_at) // form.stride
    entries = []
    for index in range(min(form.capacity, num_payloads)):
        entry = _unpack_entry(head, index, form)
        if entry is None:
            break
        entries.append(entry[0])
    if not entries:
        raise BadSegment("no block is complete")
    return Contents(anchor, entries, status.st_mtime_ns)


def read_blocks(path: Path, form: SegmentFormat, anchor: Anchor, first: int, expected: Sequence[Entry]) -> Payload:
    """The payloads of blocks [first, first + len(expected)): uint8 [len(expected), block_bytes].

    Raises BadSegment unless anchor, hashes, token ids and every checksum are as they must be.
    """
    rows = np.empty((len(expected), form.stride), np.uint8)
    with path.open("rb", buffering=0) as file:
        head = _read(file, form.data_at)
        file.seek(form.data_at + first * form.stride)
        _read_into(file, rows.data.cast("B"))
    if _check_head(head, form) != anchor:
        raise BadSegment("another path's file")
    for index, entry in enumerate(expected):
        found = _unpack_entry(head, first + index, form)
        if found is None or found[0] != entry:
            raise BadSegment("other blocks than expected")
        if zlib.crc32(rows[index, : form.block_bytes].data) != found[1]:
            raise BadSegment("a payload misses its checksum")
    return rows[:, : form.block_bytes]


def _check_head(head: bytes, form: SegmentFormat) -> Anchor:
    """What the file hangs on. The rest of the header must be, byte for byte, the one that we would write."""
    if len(head) < form.data_at:
        raise BadSegment("the header is cut off")
    magic, length, checksum = _PREFIX.unpack_from(head)
    if magic != MAGIC:
        raise BadSegment("no segment, or one of another version")
    packed = head[_PREFIX.size : _PREFIX.size + length]
    if zlib.crc32(packed) != checksum:
        raise BadSegment("the header misses its checksum")
    try:
        header = msgpack.unpackb(packed)
        anchor = Anchor(header["root"], header["parent"], header["tenant"])
        expected = form.head(anchor)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise BadSegment("the header cannot be read") from error
    if head[: form.entries_at] != expected or {type(part) for part in anchor} != {bytes}:
        raise BadSegment("another model, layout or configuration")
    return anchor


def _seed(head: bytes) -> int:
    """Of the entries' checksums: the header's own."""
    checksum: int = _PREFIX.unpack_from(head)[2]
    return checksum


def _pack_entry(entry: Entry, payload_crc: int, seed: int) -> bytes:
    body = entry.block_hash + _U32.pack(payload_crc) + entry.token_bytes
    return body + _U32.pack(zlib.crc32(body, seed))


def _unpack_entry(head: bytes, index: int, form: SegmentFormat) -> tuple[Entry, int] | None:
    """(entry, crc32 of its payload), or None if it was never written whole."""
    start = form.entries_at + index * form.entry_bytes
    end = start + form.entry_bytes - _U32.size
    body = head[start:end]
    if zlib.crc32(body, _seed(head)) != _U32.unpack_from(head, end)[0]:
        return None
    tokens_at = DIGEST_BYTES + _U32.size
    return Entry(BlockHash(body[:DIGEST_BYTES]), body[tokens_at:]), _U32.unpack_from(body, DIGEST_BYTES)[0]


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    """All of it: an unbuffered file may take less, of a full disk or of more than 2 GiB."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _read(file: BinaryIO, size: int) -> bytes:
    data = bytearray(size)
    _read_into(file, memoryview(data))
    return bytes(data)


def _read_into(file: BinaryIO, view: memoryview) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise BadSegment("the file is cut off")
        view = view[count:]


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
