"""The folder: its bound, its order, what a start makes of it, and what a kill at any moment leaves."""

import multiprocessing
import os
import random
import resource
import signal
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.hashing import branch_root
from sessions.tiers.segment import Anchor
from sessions.tiers.segment_folder import FolderInUse, SegmentFolder
from sessions.tiers.segment_store import SegmentStore
from sessions.types import BlockHash
from tests.unit.sessions.tiers.segments import CAPACITY, FORM, ROOT, files_under, path_of, readable, rows_of, store_path

PLENTY = 2**30
FULL_FILE = FORM.segment_bytes(CAPACITY)
LONG = tuple(range(1, 11))
"""10 blocks: files of 4, 4 and 2."""
SHARED_ROOT = BlockHash(b"S" * 16)
HASH = BlockHash(b"h" * 16)


def reopened(store: SegmentStore, folder: Path, max_bytes: int = PLENTY) -> SegmentStore:
    store.close()
    return SegmentStore(SegmentFolder(folder, FORM), max_bytes)


def test_paths_are_found_and_outlive_the_store(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    assert store_path(store, *LONG)
    assert store_path(store, 1, 2, 3, 99, 98)
    for _ in range(2):
        store.check_integrity()
        assert store.num_blocks == len(LONG) + 2
        assert readable(store, *LONG) == len(LONG)
        assert readable(store, 1, 2, 3, 99, 98, 97) == 5
        assert readable(store, 5) == 0
        store = reopened(store, tmp_path)


def test_short_turns_fill_files_up(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    for end in range(1, len(LONG) + 1):
        assert store_path(store, *LONG[:end])
    assert len(files_under(tmp_path)) == 3
    assert readable(reopened(store, tmp_path), *LONG) == len(LONG)


def test_only_the_owner_may_look(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    folder.mkdir(mode=0o755)
    store = SegmentStore(SegmentFolder(folder, FORM), PLENTY)
    store_path(store, 1)
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_one_process_owns_the_folder(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    with pytest.raises(FolderInUse):
        SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store = reopened(store, tmp_path)


def test_over_the_bound_the_oldest_goes_with_what_follows_it_first(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 3 * FULL_FILE)
    store_path(store, *[1] * 4)
    store_path(store, *[2] * 4)
    store_path(store, *[1] * 8)  # uses the first path again, and now the second is the oldest
    store_path(store, *[3] * 4)
    assert [readable(store, *[number] * 8) for number in (1, 2, 3)] == [8, 0, 4]
    store_path(store, *[4] * 4)
    assert [readable(store, *[number] * 8) for number in (1, 3, 4)] == [4, 4, 4]
    store.check_integrity()


def test_random_traffic_stays_within_the_bound_and_prefix_closed(tmp_path: Path) -> None:
    draw = random.Random(5)
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 6 * FULL_FILE)
    for _ in range(200):
        path = [draw.randint(0, 2) for _ in range(draw.randint(1, 12))]
        assert store_path(store, *path)
        assert store.num_bytes <= store.max_bytes
        assert sum(file.stat().st_size for file in files_under(tmp_path)) == store.num_bytes
        store.check_integrity()
        if draw.random() < 0.1:
            store = reopened(store, tmp_path, store.max_bytes)
            store.check_integrity()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 2), st.booleans(), st.booleans()), max_size=25))
def test_what_is_on_disk_can_be_reached_from_a_root(uses: list[tuple[int, int, bool, bool]]) -> None:
    """Tenants go on from shared content, here or there. Its blocks are mostly in the pool, so only their own are read:
    for all that, what they go on from stays as long as they do, and goes with them. After a restart too."""
    with TemporaryDirectory() as folder:
        store = SegmentStore(SegmentFolder(Path(folder), FORM), 5 * FULL_FILE, SHARED_ROOT)
        for num_shared, number, is_read, is_restarted in uses:
            shared, _ = path_of(*LONG[:num_shared], root=SHARED_ROOT)
            tenant = BlockHash(bytes([number]) * 16)
            root = branch_root(tenant, shared[-1]) if shared else tenant
            if not (is_read and readable(store, *[number] * 6, root=root)):
                store_path(store, *LONG[:num_shared], root=SHARED_ROOT)
                assert store_path(store, *[number] * 6, root=root, tenant=tenant, head=shared[-1] if shared else None)
            if is_restarted:
                store.close()
                store = SegmentStore(SegmentFolder(Path(folder), FORM), store.max_bytes, SHARED_ROOT)
            store.check_integrity()
            for segment in list(store._index):
                *_, first = segment.needed()
                assert first.anchor.root in (SHARED_ROOT, segment.anchor.tenant)
                assert first.anchor.parent == first.anchor.root
        store.close()


def test_a_shared_head_that_is_lost_takes_with_it_what_goes_on_from_it(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY, SHARED_ROOT)
    shared, _ = path_of(*LONG[:6], root=SHARED_ROOT)
    store_path(store, *LONG[:6], root=SHARED_ROOT)
    roots = [branch_root(ROOT, shared[end - 1]) for end in (3, 6)]
    for end, root in zip((3, 6), roots, strict=True):
        assert store_path(store, 7, 8, root=root, tenant=ROOT, head=shared[end - 1])
    assert not store_path(store, 7, root=branch_root(ROOT, HASH), tenant=ROOT, head=HASH), "its head is not there"
    assert [holding.num_tokens // FORM.block_size for holding in store.holdings(ROOT)] == [2, 2]
    (tmp_path / FORM.namespace.hex() / shared[4].hex()).unlink()
    store.close()
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY, SHARED_ROOT)
    assert [readable(store, 7, 8, root=root) for root in roots] == [2, 0]
    assert len(store.drop(ROOT)) == 2, "what is the tenant's goes, the shared stays"
    assert readable(store, *LONG[:6], root=SHARED_ROOT) == 4
    store.check_integrity()


def test_what_is_larger_than_the_bound_is_refused(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 2 * FULL_FILE)
    store_path(store, 9)
    assert not store_path(store, *LONG)
    assert readable(store, *LONG) == 8, "what fits is kept: the path being written is not eaten by its own end"
    store.check_integrity()


def test_the_order_of_use_outlives_the_process(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    for number in (1, 2, 3):
        store_path(store, *[number] * 4)
    assert readable(store, *[1] * 4) == 4
    store = reopened(store, tmp_path, 2 * FULL_FILE)
    assert [readable(store, *[number] * 4) for number in (1, 2, 3)] == [4, 0, 4]


def test_other_namespaces_go_first(tmp_path: Path) -> None:
    foreign = SegmentStore(SegmentFolder(tmp_path, replace(FORM, namespace=b"f" * 16)), PLENTY)
    store_path(foreign, *[1] * 8)
    foreign.close()
    store = SegmentStore(SegmentFolder(tmp_path, FORM), 3 * FULL_FILE)
    assert store.num_blocks == 0, "another model's files are never used"
    store_path(store, *[1] * 4)
    assert len(files_under(tmp_path)) == 3
    store_path(store, *[2] * 8)
    assert [readable(store, *[number] * 8) for number in (1, 2)] == [4, 8]
    assert len(files_under(tmp_path)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:20] + b"\xff" + data[21:],
        lambda data: b"anaphora-kv/0\n\0\0" + data[16:],
    ],
)
def test_a_bad_file_is_removed_at_start_with_what_follows_it(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(store, *LONG)
    store_path(store, 77)
    victim = tmp_path / FORM.namespace.hex() / path_of(*LONG)[0][4].hex()
    victim.write_bytes(damage(victim.read_bytes()))
    store = reopened(store, tmp_path)
    store.check_integrity()
    assert readable(store, *LONG) in (4, 5)  # half a file has one whole block
    assert readable(store, 77) == 1
    assert store.num_corrupt >= 1


def test_a_file_under_another_name_is_removed(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(store, 1)
    (path,) = files_under(tmp_path)
    path.rename(path.with_name("0" * 32))
    store = reopened(store, tmp_path)
    assert store.num_blocks == 0 and files_under(tmp_path) == []


def test_a_corrupt_payload_is_found_when_it_is_read(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(store, *LONG)
    path = tmp_path / FORM.namespace.hex() / path_of(*LONG)[0][4].hex()
    data = bytearray(path.read_bytes())
    data[FORM.data_at + 100] ^= 4
    path.write_bytes(data)
    store = reopened(store, tmp_path)
    assert store.num_blocks == len(LONG), "a start reads headers only"
    assert readable(store, *LONG) == 4
    assert store.num_corrupt == 1
    store.check_integrity()


def test_a_file_that_is_gone_is_a_miss(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(store, *LONG)
    (tmp_path / FORM.namespace.hex() / path_of(*LONG)[0][4].hex()).unlink()
    assert readable(store, *LONG) == 4
    store.check_integrity()


def test_a_root_can_be_dropped(tmp_path: Path) -> None:
    other = BlockHash(b"o" * 16)
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(store, *LONG)
    store_path(store, *LONG, root=other)
    hashes, _ = path_of(*LONG)
    assert sorted(store.drop(ROOT, hashes[5])) == sorted(hashes[5:]), "to the block, inside a file"
    assert readable(store, *LONG) == 5
    assert store.drop(ROOT, hashes[5]) == []
    assert sorted(store.drop(ROOT)) == sorted(hashes[:5])
    assert readable(store, *LONG) == 0
    assert readable(store, *LONG, root=other) == len(LONG)
    store.check_integrity()


@pytest.mark.parametrize("num_stored", [0, 2])
def test_what_another_drops_while_a_file_grows_costs_what_is_being_written_at_most(
    tmp_path: Path, num_stored: int
) -> None:
    """Blocks that were copied before a drop, anybody's, are not stored after it; those before them stay."""
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    hashes, entries = path_of(1, 2, 3)
    store_path(store, *range(1, num_stored + 1))
    before = store.num_drops
    store.drop(BlockHash(b"o" * 16))
    anchor = Anchor(ROOT, hashes[num_stored - 1] if num_stored else ROOT, ROOT)
    assert not store.append(anchor, entries[num_stored:], rows_of(entries[num_stored:]), before)
    store.check_integrity()
    assert readable(store, 1, 2, 3) == num_stored
    assert store_path(store, 1, 2, 3, 4)
    assert readable(reopened(store, tmp_path), 1, 2, 3, 4) == 4


def test_under_a_tenant_s_own_root_is_all_of_the_tenant_s_after_a_restart_too(tmp_path: Path) -> None:
    salted, other = BlockHash(b"s" * 16), BlockHash(b"o" * 16)
    before = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    store_path(before, 1, 2)
    store_path(before, *LONG, root=salted, tenant=ROOT)
    store_path(before, *LONG, root=other)
    before.close()
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    assert readable(store, *LONG, root=salted) == len(LONG)
    assert len(store.drop(ROOT)) == 2 + len(LONG)
    assert readable(store, *LONG, root=salted) == readable(store, 1, 2) == 0
    assert readable(store, *LONG, root=other) == len(LONG)
    store.check_integrity()


def test_a_tenant_s_paths_are_listed_with_what_they_share(tmp_path: Path) -> None:
    """Files hold 4 blocks: a path of 6 is two, and one that departs inside a file shares what is before it."""
    other = BlockHash(b"o" * 16)
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    assert store.holdings(ROOT) == []
    store_path(store, 1, 2, 3, 4, 5, 6)
    store_path(store, 1, 2, 9)
    store_path(store, 7, root=BlockHash(b"s" * 16), tenant=ROOT)
    store_path(store, 1, 2, root=other)
    found = {holding.leaf_hash: holding for holding in store.holdings(ROOT)}
    size = FORM.block_size
    ends = [path_of(1, 2, 3, 4, 5, 6)[0][-1], path_of(1, 2, 9)[0][-1], path_of(7, root=BlockHash(b"s" * 16))[0][-1]]
    assert [(found[end].num_tokens // size, found[end].num_shared_tokens // size) for end in ends] == [
        (6, 2),
        (3, 2),
        (1, 0),
    ]
    assert store.holdings(ROOT)[0].leaf_hash == ends[2], "the last used first"
    assert all(0 <= holding.age_s < 60 and holding.num_bytes > 0 for holding in found.values())
    assert (store.num_blocks_of(ROOT), store.num_blocks_of(other)) == (8, 2)
    assert [holding.num_tokens for holding in store.holdings(other)] == [2 * size]


def test_of_a_path_is_known_what_others_need_of_it(tmp_path: Path) -> None:
    """Files hold 4 blocks. One path leaves inside a file, one at its end, one where the next file has begun."""
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    hashes, _ = path_of(*LONG)
    store_path(store, *LONG)
    assert store.num_needed(hashes) == 0
    assert store.num_needed(hashes[:7]) == 7, "it goes on"
    for num_shared in (2, 4, 5):
        store_path(store, *LONG[:num_shared], 90, 91)
        assert store.num_needed(hashes) == num_shared
    assert store.chain_to(ROOT, hashes[-1]) == (ROOT, hashes)
    assert store.chain_to(ROOT, path_of(*LONG[:2], 90, 91)[0][-1]) == (ROOT, path_of(*LONG[:2], 90, 91)[0])
    assert store.chain_to(BlockHash(b"o" * 16), hashes[-1]) is None, "it is another tenant's"
    assert store.chain_to(ROOT, BlockHash(b"?" * 16)) is None


@pytest.mark.parametrize("first", range(len(LONG)))
def test_a_drop_ends_at_its_block_and_leaves_what_departs_before(tmp_path: Path, first: int) -> None:
    """Every place in a path of three files; another path departs after each block. So it is after a restart too."""
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    hashes, entries = path_of(*LONG)
    store_path(store, *LONG)
    forks = [(*LONG[:at], 70 + at) for at in range(1, len(LONG))]
    for fork in forks:
        store_path(store, *fork)
    store.drop(ROOT, hashes[first])
    for _ in range(2):
        store.check_integrity()
        assert readable(store, *LONG) == first
        assert [readable(store, *fork) == len(fork) for fork in forks] == [len(fork) - 1 <= first for fork in forks]
        store = reopened(store, tmp_path)
    left = b"".join(path.read_bytes() for path in files_under(tmp_path))
    assert not any(entry.token_bytes in left for entry in entries[first:]), "the ids are no longer in the file"
    assert store_path(store, *LONG) and readable(store, *LONG) == len(LONG)
    store.check_integrity()


def test_a_reader_who_comes_late_finds_a_miss_and_harms_nothing(tmp_path: Path) -> None:
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    hashes, entries = path_of(1, 2, 3, 4)
    store_path(store, 1, 2, 3, 4)
    store_path(store, 1, 90)
    (piece,) = store.pieces(ROOT, hashes, 0)
    store.drop(ROOT, hashes[2])
    assert store.read(piece, entries) is None
    assert store.num_corrupt == 0
    assert (readable(store, 1, 2, 3, 4), readable(store, 1, 90)) == (2, 2)


def in_a_process(target: Callable[..., None], *args: object) -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def write_past_the_end_of_the_disk(folder: Path, done: Connection) -> None:
    """A limit on the size of a file stands for a disk that is full in the middle of a write."""
    store = SegmentStore(SegmentFolder(folder, FORM), PLENTY)
    store_path(store, 1, 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FORM.segment_bytes(2) + FORM.stride // 2, resource.RLIM_INFINITY))
    outcomes = []
    for path in ((1, 2, 3), (7, 7, 7)):
        try:
            store_path(store, *path)
            outcomes.append("written")
        except OSError:
            outcomes.append("failed")
    store.check_integrity()
    done.send((outcomes, [file.stat().st_size for file in files_under(folder)]))


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    process, pipe = in_a_process(write_past_the_end_of_the_disk, tmp_path)
    assert pipe.poll(20)
    assert pipe.recv() == (["failed", "failed"], [FORM.segment_bytes(2)])
    process.join(20)
    store = SegmentStore(SegmentFolder(tmp_path, FORM), PLENTY)
    assert readable(store, 1, 2, 3) == 2
    store.check_integrity()


def write_for_ever(folder: Path, seed: int, ready: Connection) -> None:
    draw = random.Random(seed)
    store = SegmentStore(SegmentFolder(folder, FORM), 8 * FULL_FILE)
    ready.send("open")
    while True:
        store_path(store, *[draw.randint(0, 2) for _ in range(draw.randint(1, 12))])


def test_a_kill_at_any_moment_leaves_files_that_are_right(tmp_path: Path) -> None:
    """20 writers, one after the other in the same folder, each killed somewhere in its work."""
    draw = random.Random(11)
    sizes = []
    for seed in range(20):
        process, pipe = in_a_process(write_for_ever, tmp_path, seed)
        assert pipe.poll(20) and pipe.recv() == "open"
        threading.Event().wait(draw.random() * 0.05)  # the moment is the point; nothing is awaited
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(20)
        store = SegmentStore(SegmentFolder(tmp_path, FORM), 8 * FULL_FILE)
        store.check_integrity()
        sizes.append(store.num_blocks)
        for segment in list(store._index):
            assert readable_whole(store, segment.hashes[-1]), "a torn block is counted as stored"
        assert store.num_corrupt <= 1, "only the file that was being made may be torn"
        store.close()
    assert max(sizes) > 8


def readable_whole(store: SegmentStore, last: BlockHash) -> bool:
    """Is the path that ends in `last` readable, and right? The tokens are found by trying: there are three."""
    pending: list[tuple[int, ...]] = [(0,), (1,), (2,)]
    while pending:
        path = pending.pop()
        hashes, _ = path_of(*path)
        if store.num_stored(hashes) < len(hashes):
            continue
        if hashes[-1] == last:
            return readable(store, *path) == len(path)
        pending += [(*path, number) for number in range(3)]
    return False
