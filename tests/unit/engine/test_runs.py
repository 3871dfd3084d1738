"""Runs of stored blocks: what is shown of a tree, and what is left out of it."""

from sessions.engine.block_pool import BlockPool
from sessions.engine.runs import Runs
from sessions.types import BlockHash
from tests.unit.engine.pools import ROOT, hashes_of, serve, store

HEAD = list(range(8))


def looked(pool: BlockPool, *, now: float = 100.0, max_runs: int = 50, max_blocks: int = 1000) -> Runs:
    return pool.census.runs([ROOT], now, max_runs=max_runs, max_blocks=max_blocks)


def branching() -> BlockPool:
    """Two blocks that three paths begin with; the last of them was used last."""
    pool = BlockPool(64, 4)
    for index, tail in enumerate(([20, 21, 22, 23, 24], [30, 31, 32, 33], [40, 41])):
        serve(pool, HEAD + tail, now=10.0 * (index + 1))
    return pool


def test_nothing_is_nothing() -> None:
    assert looked(BlockPool(8, 4)) == ([], 0)


def test_a_branch_ends_a_run_and_a_tail_belongs_to_one() -> None:
    pool = branching()
    runs, num_left_out = looked(pool)
    assert num_left_out == 0
    assert [(run.parent, run.start, run.num_tokens) for run in runs] == [
        (None, 0, 8),
        (0, 8, 2),
        (0, 8, 4),
        (0, 8, 5),
    ]
    hashes = hashes_of(pool, [*HEAD, 20, 21, 22, 23])
    assert [run.hashes for run in (runs[0], runs[1], runs[3])] == [hashes[:2], [], hashes[2:]]


def test_the_last_used_come_first_with_their_age() -> None:
    runs, _ = looked(branching())
    assert [run.age_s for run in runs] == [70.0, 70.0, 80.0, 90.0]


def test_who_goes_through_a_run_who_holds_it_and_who_came_back_for_it() -> None:
    pool = branching()
    held = store(pool, [*HEAD, 30, 31, 32, 33], now=95.0)
    runs, _ = looked(pool)
    assert [(run.num_paths, run.ref_count, run.age_s) for run in runs[:2]] == [(3, 1, 0.0), (1, 1, 0.0)]
    assert [run.num_tokens for run in runs[:2]] == [8, 4]
    assert runs[0].num_hits == sum(block.num_hits for block in held[:2])
    pool.free(held, 96.0)


def test_pins_are_seen() -> None:
    pool = branching()
    pool.pin(ROOT, hashes_of(pool, HEAD))
    assert [run.is_pinned for run in looked(pool)[0]] == [True, False, False, False]


def test_what_went_longest_without_use_is_left_out_and_counted() -> None:
    runs, num_left_out = looked(branching(), max_runs=2)
    assert [(run.age_s, run.num_left_out, run.num_paths) for run in runs] == [(70.0, 2, 3), (70.0, 0, 1)]
    assert num_left_out == 0
    pool = branching()
    serve(pool, [50, 51, 52, 53], now=99.0)
    runs, num_left_out = looked(pool, max_runs=1)
    assert ([run.start + run.num_tokens for run in runs], num_left_out) == ([4], 1)


def test_so_many_blocks_are_looked_at_and_no_more() -> None:
    pool = BlockPool(64, 4)
    serve(pool, list(range(40)), now=1.0)
    runs, _ = looked(pool, max_blocks=3)
    assert [(run.num_tokens, run.num_left_out) for run in runs] == [(12, 1)]
    runs, _ = looked(branching(), max_blocks=3)
    assert (runs[0].num_tokens, runs[0].num_left_out) == (8, 2)
    assert len(runs) == 2


def test_a_wide_root_is_left_out_beyond_the_bound_and_counted() -> None:
    pool = BlockPool(64, 4)
    for first in range(10):
        serve(pool, [100 + first, 1, 2, 3], now=1.0 + first)
    runs, num_left_out = looked(pool, max_blocks=4)
    assert (len(runs), num_left_out) == (4, 6)


def test_another_root_s_blocks_are_not_seen() -> None:
    pool = branching()
    assert pool.census.runs([BlockHash(b"o" * 16)], 1.0, max_runs=9, max_blocks=9) == ([], 0)
