"""What only the disk has, drawn onto the runs of the pool."""

from sessions.engine.block_pool import BlockPool
from sessions.engine.runs import Runs
from sessions.hashing import chain_hashes
from sessions.picture import Picture, picture_of
from sessions.tiers import RecentSegment
from sessions.types import BlockHash
from tests.unit.engine.pools import ROOT, serve

SIZE = 4
LONG = list(range(24))


def hashes(*tokens: int) -> tuple[BlockHash, ...]:
    return tuple(chain_hashes(ROOT, tokens, SIZE))


def pool_with(*prompts: list[int]) -> BlockPool:
    pool = BlockPool(64, SIZE)
    for now, tokens in enumerate(prompts):
        serve(pool, tokens, now=float(now))
    return pool


def pictured(pool: BlockPool, *segments: RecentSegment, max_runs: int = 20) -> Picture:
    runs: Runs = pool.census.runs([ROOT], 10.0, max_runs=max_runs, max_blocks=1000)
    return picture_of(runs, segments, lambda h: pool.find(h) is not None, block_size=SIZE, max_runs=max_runs)


def shapes(picture: Picture) -> list[tuple[int | None, int, int, int]]:
    """(parent, start, tokens, paths) of each run."""
    return [(run.parent, run.start, run.num_tokens, run.num_paths) for run in picture.runs]


def test_what_is_in_the_pool_too_is_drawn_once() -> None:
    whole = hashes(*LONG)
    segments = RecentSegment("disk", None, whole[:4], 5.0), RecentSegment("disk", whole[3], whole[4:], 5.0)
    assert shapes(pictured(pool_with(LONG), *segments)) == [(None, 0, 24, 1)]


def test_what_follows_the_pool_is_one_run_after_it() -> None:
    whole = hashes(*LONG)
    segments = RecentSegment("disk", None, whole[:3], 5.0), RecentSegment("disk", whole[2], whole[3:], 7.0)
    picture = pictured(pool_with(LONG[:8]), *segments)
    assert shapes(picture) == [(None, 0, 8, 1), (0, 8, 16, 1)]
    assert (picture.tiers, picture.num_left_out) == (["pool", "disk"], 0)
    assert picture.runs[1].hashes == list(whole[2:]) and picture.runs[1].age_s == 5.0


def test_a_branch_on_disk_leaves_the_middle_of_a_run() -> None:
    whole, other = hashes(*LONG), hashes(*LONG[:8], 90, 91, 92, 93)
    segments = RecentSegment("disk", None, whole, 5.0), RecentSegment("disk", whole[1], other[2:], 6.0)
    assert shapes(pictured(pool_with(LONG), *segments)) == [(None, 0, 24, 2), (0, 8, 4, 1)]


def test_branches_on_disk_alone_hang_from_their_head() -> None:
    whole, other = hashes(*LONG), hashes(*LONG[:8], 90, 91, 92, 93)
    segments = (
        RecentSegment("disk", None, whole[:2], 1.0),
        RecentSegment("disk", whole[1], whole[2:], 2.0),
        RecentSegment("disk", other[1], other[2:], 3.0),
    )
    picture = pictured(pool_with(), *segments)
    assert shapes(picture) == [(None, 0, 8, 2), (0, 8, 16, 1), (0, 8, 4, 1)]
    assert picture.tiers == ["disk"] * 3


def test_what_is_over_the_bound_or_follows_nothing_shown_is_counted() -> None:
    whole, other = hashes(*LONG), hashes(50, 51, 52, 53, 54, 55, 56, 57)
    segments = RecentSegment("disk", None, other[:1], 1.0), RecentSegment("disk", whole[1], whole[2:], 2.0)
    assert pictured(pool_with(), *segments).num_left_out == 1
    picture = pictured(pool_with([70, 71, 72, 73]), *segments, max_runs=1)
    assert (len(picture.runs), picture.num_left_out) == (1, 2)
