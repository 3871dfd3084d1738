"""A segment file gives back what was written, or refuses."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sessions.tiers import segment_file
from sessions.tiers.segment import Anchor, BadSegment
from sessions.tiers.segment_file import SegmentFormat, append, create, read_blocks, read_contents
from tests.unit.sessions.tiers.segments import FORM, ROOT, kv_of, path_of, rows_of

ANCHOR = Anchor(ROOT, ROOT, ROOT)
HASHES, ENTRIES = path_of(1, 2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three blocks, written as two and one."""
    path = tmp_path / "segment"
    create(path, FORM, ANCHOR)
    append(path, FORM, ANCHOR, 0, ENTRIES[:2], rows_of(ENTRIES[:2]))
    append(path, FORM, ANCHOR, 2, ENTRIES[2:], rows_of(ENTRIES[2:]))
    return path


def refuses(path: Path) -> None:
    with pytest.raises(BadSegment):
        read_blocks(path, FORM, ANCHOR, 0, ENTRIES)


def test_what_was_written_is_read(path: Path) -> None:
    contents = read_contents(path, FORM)
    assert (contents.anchor, contents.entries) == (ANCHOR, ENTRIES)
    for first in range(3):
        for end in range(first + 1, 4):
            payload = read_blocks(path, FORM, ANCHOR, first, ENTRIES[first:end])
            assert (payload == kv_of(ENTRIES[first:end])).all()
    assert path.stat().st_size == FORM.segment_bytes(3)
    assert FORM.data_at % 4096 == 0 and FORM.stride % 4096 == 0


def test_only_the_owner_may_read(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_flipped_bit_is_refused_wherever_it_is(path: Path) -> None:
    """Every byte that means something; padding between the parts is nobody's."""
    whole = path.read_bytes()
    used = [*range(FORM.entries_at + 3 * FORM.entry_bytes)]
    used += [FORM.data_at + block * FORM.stride + byte for block in range(3) for byte in range(0, FORM.block_bytes, 97)]
    for position in used:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        refuses(path)


def test_a_block_that_is_not_damaged_is_still_read(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[FORM.data_at + 2 * FORM.stride] ^= 1
    path.write_bytes(damaged)
    assert (read_blocks(path, FORM, ANCHOR, 0, ENTRIES[:2]) == kv_of(ENTRIES[:2])).all()
    refuses(path)


def test_a_file_cut_off_anywhere_has_only_its_whole_blocks(path: Path) -> None:
    whole = path.read_bytes()
    for size in range(0, len(whole), 509):
        path.write_bytes(whole[:size])
        num_whole = max(0, size - FORM.data_at) // FORM.stride
        if num_whole:
            assert read_contents(path, FORM).entries == ENTRIES[:num_whole]
        else:
            with pytest.raises(BadSegment):
                read_contents(path, FORM)
        refuses(path)


def test_a_block_without_its_entry_does_not_exist(tmp_path: Path, path: Path) -> None:
    """Killed between payload and entry: the block before is intact, and the next append writes over it."""
    torn = bytearray(path.read_bytes())
    start = FORM.entries_at + 2 * FORM.entry_bytes
    torn[start : start + FORM.entry_bytes] = bytes(FORM.entry_bytes)
    path.write_bytes(torn)
    assert read_contents(path, FORM).entries == ENTRIES[:2]
    other = path_of(1, 2, 9)[1]
    append(path, FORM, ANCHOR, 2, other[2:], rows_of(other[2:]))
    assert (read_blocks(path, FORM, ANCHOR, 0, other) == kv_of(other)).all()


def test_an_entry_of_another_file_is_refused(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    create(other, FORM, Anchor(ROOT, HASHES[0], ROOT))
    append(other, FORM, Anchor(ROOT, HASHES[0], ROOT), 0, ENTRIES[1:], rows_of(ENTRIES[1:]))
    ours, theirs = bytearray(path.read_bytes()), other.read_bytes()
    first = slice(FORM.entries_at, FORM.entries_at + FORM.entry_bytes)
    ours[first] = theirs[first]
    path.write_bytes(ours)
    with pytest.raises(BadSegment):
        read_contents(path, FORM)


@pytest.mark.parametrize(
    "foreign",
    [
        replace(FORM, namespace=b"m" * 16),
        replace(FORM, layout="fake 6"),
        replace(FORM, block_size=32),
        replace(FORM, block_bytes=4999),
        replace(FORM, block_bytes=9000),
    ],
)
def test_another_models_file_is_refused(path: Path, foreign: SegmentFormat) -> None:
    with pytest.raises(BadSegment):
        read_contents(path, foreign)
    with pytest.raises(BadSegment):
        read_blocks(path, foreign, ANCHOR, 0, ENTRIES[:1])


def test_another_versions_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_file, "MAGIC", b"anaphora-kv/2\n\0\0")
    refuses(path)


@pytest.mark.parametrize(
    "anchor",
    [Anchor(ROOT, HASHES[0], ROOT), Anchor(HASHES[0], ROOT, HASHES[0]), Anchor(HASHES[0], HASHES[0], HASHES[0])],
)
def test_another_paths_file_is_refused(path: Path, anchor: Anchor) -> None:
    with pytest.raises(BadSegment, match="another path"):
        read_blocks(path, FORM, anchor, 0, ENTRIES)


@pytest.mark.parametrize("other", [path_of(1, 2, 4)[1], path_of(2, 2, 3)[1], path_of(1, 2, 3, 4)[1]])
def test_other_blocks_are_refused(path: Path, other: list[segment_file.Entry]) -> None:
    with pytest.raises(BadSegment):
        read_blocks(path, FORM, ANCHOR, 0, other)


@pytest.mark.parametrize("junk", [b"", b"\0" * 5000, os.urandom(50_000)])
def test_junk_is_refused(path: Path, junk: bytes) -> None:
    path.write_bytes(junk)
    with pytest.raises(BadSegment):
        read_contents(path, FORM)
    refuses(path)


def test_a_header_of_hostile_msgpack_is_refused(path: Path) -> None:
    """With a right checksum: only what we would have written is taken."""
    import struct
    import zlib

    def header(packed: bytes) -> bytes:
        return struct.pack("<16sII", segment_file.MAGIC, len(packed), zlib.crc32(packed)) + packed

    hostile: list[Callable[[], bytes]] = [
        lambda: b"\xc1",
        lambda: b"\x90",
        lambda: b"\xdd\xff\xff\xff\xff",
        lambda: b"\x82\xa4root\x01\xa6parent\x02",
        lambda: b"\x82\xa4root\xa1x\xa6parent\xa1y",
    ]
    for make in hostile:
        path.write_bytes(header(make()).ljust(FORM.data_at, b"\0"))
        with pytest.raises(BadSegment):
            read_contents(path, FORM)
