"""The index beside a plain model of it: a set of paths and a list of what was used when."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.hashing import extend_tokens
from sessions.tiers.segment import Anchor
from sessions.tiers.segment_index import SegmentIndex
from sessions.types import BlockHash

CAPACITY = 3
ROOTS = [BlockHash(bytes([root]) * 16) for root in range(2)]

Path = tuple[int, ...]
"""The first number is the root's, then one per block."""

paths = st.lists(st.integers(0, 1), min_size=2, max_size=9).map(tuple)


def hashes_of(path: Path) -> list[BlockHash]:
    hashes, parent = [], ROOTS[path[0]]
    for number in path[1:]:
        parent = extend_tokens(parent, [number])
        hashes.append(parent)
    return hashes


def store(index: SegmentIndex, path: Path) -> None:
    """As `SegmentStore.append` does it, run after run."""
    root, hashes = ROOTS[path[0]], hashes_of(path)
    start = index.num_stored(hashes)
    while start < len(hashes):
        parent = hashes[start - 1] if start else root
        growing = index.growing(root, parent)
        run = hashes[start : start + CAPACITY - (len(growing.hashes) if growing else 0)]
        if growing is not None:
            index.extend(growing, run)
        else:
            assert index.add(Anchor(root, parent, root), run) is not None
        start += len(run)


def name_of(index: SegmentIndex, block_hash: BlockHash) -> str:
    segment = index.segment_of(block_hash)
    assert segment is not None
    return segment.name


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["store", "touch", "evict", "remove"]), paths), max_size=40))
def test_it_is_prefix_closed_and_gives_up_the_oldest_leaf(operations: list[tuple[str, Path]]) -> None:
    index = SegmentIndex(CAPACITY)
    stored: dict[BlockHash, BlockHash] = {}  # block hash -> its parent
    used_at: dict[str, int] = {}  # segment's name -> when
    for now, (operation, path) in enumerate(operations):
        hashes = hashes_of(path)
        gone: list[BlockHash] = []
        if operation == "store":
            store(index, path)
            stored.update(zip(hashes, [ROOTS[path[0]], *hashes], strict=False))
        if operation in ("store", "touch") and (segment := index.segment_of(hashes[-1])):
            index.touch(segment)
            used_at.update((used.name, now) for used in segment.path())
        if operation == "evict" and (oldest := index.oldest()):
            links = {
                (name_of(index, block), name_of(index, parent)) for block, parent in stored.items() if parent in stored
            }
            leaves = {name_of(index, block) for block in stored} - {
                parent for block, parent in links if block != parent
            }
            assert oldest.name in leaves
            assert used_at[oldest.name] == min(used_at[leaf] for leaf in leaves)
            gone = [block_hash for removed in index.remove(oldest) for block_hash in removed.hashes]
            assert gone == oldest.hashes
        elif operation == "remove" and (segment := index.segment_of(hashes[0])):
            removed = index.remove(segment)
            assert removed[-1] is segment
            gone = [block_hash for one in removed for block_hash in one.hashes]
        for block_hash in gone:
            del stored[block_hash]
        assert all(parent in stored or parent in ROOTS for parent in stored.values())
        assert index.num_blocks == len(stored)
        assert index.num_stored(hashes) == sum(block_hash in stored for block_hash in hashes)
        index.check_integrity()


@settings(deadline=None)
@given(st.lists(paths, min_size=1, max_size=12), paths, st.integers(0, 8))
def test_pieces_cover_what_is_stored_from_left_to_right(held: list[Path], asked: Path, start: int) -> None:
    index = SegmentIndex(CAPACITY)
    for path in held:
        store(index, path)
    hashes = hashes_of(asked)
    covered: list[BlockHash] = []
    for piece in index.pieces(ROOTS[asked[0]], hashes, start):
        assert piece.position == start + len(covered)
        covered += piece.segment.hashes[piece.first : piece.first + piece.num_blocks]
    known = index.num_stored(hashes)
    assert covered == hashes[start : max(start, known)]
    assert index.pieces(BlockHash(b"x" * 16), hashes, start) == []


def test_what_follows_nothing_is_not_added() -> None:
    index = SegmentIndex(CAPACITY)
    first, second = hashes_of((0, 1, 1))
    assert index.add(Anchor(ROOTS[0], first, ROOTS[0]), [second]) is None
    assert index.add(Anchor(ROOTS[0], ROOTS[0], ROOTS[0]), [first]) is not None
    assert index.add(Anchor(ROOTS[1], first, ROOTS[1]), [second]) is None, "under another root"
    assert index.add(Anchor(ROOTS[0], ROOTS[0], ROOTS[0]), [first]) is None, "stored already"
    assert index.num_blocks == 1
    index.check_integrity()


def test_a_segment_grows_only_at_its_end_and_to_its_capacity() -> None:
    index = SegmentIndex(CAPACITY)
    hashes = hashes_of((0, 1, 1, 1))
    segment = index.add(Anchor(ROOTS[0], ROOTS[0], ROOTS[0]), hashes[:2])
    assert segment is not None
    assert index.growing(ROOTS[0], hashes[0]) is None
    assert index.growing(ROOTS[0], hashes[1]) is segment
    index.extend(segment, hashes[2:])
    assert index.growing(ROOTS[0], hashes[2]) is None
    assert index.growing(ROOTS[0], ROOTS[0]) is None


def test_only_a_shared_root_s_blocks_are_gone_on_from_under_another() -> None:
    index = SegmentIndex(CAPACITY, shared_root=ROOTS[0])
    shared, private = hashes_of((0, 1, 1)), hashes_of((1, 1, 1))
    head = index.add(Anchor(ROOTS[0], ROOTS[0], ROOTS[0]), shared)
    assert head is not None
    assert index.growing(ROOTS[1], shared[1]) is None, "nobody's own is put into a shared segment"
    branch = index.add(Anchor(ROOTS[1], shared[0], ROOTS[1]), private)
    assert branch is not None and (branch.before, branch.head) == (None, head)
    assert index.add(Anchor(ROOTS[0], private[1], ROOTS[0]), hashes_of((0, 0))) is None
    assert index.under(ROOTS[1]) == [branch] and [path.num_blocks for path in index.paths_of(ROOTS[1])] == [2]
    index.check_integrity()
    assert index.remove(head) == [branch, head]
    index.check_integrity()
