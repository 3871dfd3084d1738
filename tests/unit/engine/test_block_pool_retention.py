"""What goes first: levels, TTLs, pins, budgets, and what is remembered of the lost. Block size 2, seconds by hand."""

import pytest

from sessions.engine import losses
from sessions.engine.block_pool import BlockPool
from sessions.engine.budgets import Budgets
from sessions.engine.losses import Loss, Losses
from sessions.engine.pins import PinLimitExceeded
from sessions.engine.retention import CONTINUED, KEPT, ONE_SHOT, SHARED, TTL_S, Retention
from sessions.types import BlockHash
from tests.unit.engine.pools import ROOT, hashes_of, levels, matched, serve, store

A, B, C, D = ([10 * letter + place for place in range(4)] for letter in range(1, 5))
FOREVER = Retention(ttl_s=float("inf")).level


def make_pool(num_blocks: int = 8) -> BlockPool:
    return BlockPool(num_blocks, 2)


def lose(pool: BlockPool, num_blocks: int, now: float) -> None:
    """Somebody needs so many blocks for a moment; checks that all is well after it."""
    pool.free(pool.allocate(num_blocks, now), now)
    pool.check_integrity()


# -- levels --


def test_a_session_rises_and_a_fork_makes_its_head_shared() -> None:
    pool = make_pool(16)
    serve(pool, A, now=0)
    assert levels(pool, A) == [ONE_SHOT, ONE_SHOT]
    serve(pool, A + B, now=1)
    assert levels(pool, A + B) == [CONTINUED] * 4
    serve(pool, A + C, now=2)
    assert levels(pool, A + B) == [SHARED, SHARED, CONTINUED, CONTINUED]
    assert levels(pool, A + C) == [SHARED, SHARED, ONE_SHOT, ONE_SHOT]
    pool.check_integrity()


def test_who_comes_back_for_what_was_lost_is_a_session() -> None:
    pool = make_pool(8)
    serve(pool, A + B, now=0)
    serve(pool, A + C, now=1)
    lose(pool, 4, 2)
    assert matched(pool, A + B) == 4
    serve(pool, A + B, now=3)
    assert levels(pool, A + B) == [SHARED, SHARED, CONTINUED, CONTINUED]


def test_retention_raises_a_prefix_and_never_lowers() -> None:
    pool = make_pool()
    path = store(pool, A + B)
    pool.retain(path, 3, FOREVER)
    pool.retain(path, 8, KEPT)
    pool.retain(path, 8, ONE_SHOT)
    pool.retain(path, 0, FOREVER)
    assert [block.level for block in path] == [FOREVER, FOREVER, KEPT, KEPT]
    pool.free(path, 0)
    lose(pool, 8, 0)
    assert all(block.level == ONE_SHOT for block in pool.blocks)


def test_blocks_that_are_not_registered_yet_are_not_raised() -> None:
    pool = make_pool()
    path = [*store(pool, A), *pool.allocate(2, 0)]
    pool.retain(path, 8, KEPT)
    assert [block.level for block in path] == [KEPT, KEPT, ONE_SHOT, ONE_SHOT]


@pytest.mark.parametrize(
    ("retention", "level"),
    [
        (Retention(), ONE_SHOT),
        (Retention(priority="low"), ONE_SHOT),
        (Retention(ttl_s=1800, priority="low"), ONE_SHOT),
        (Retention(priority="high"), KEPT),
        (Retention(ttl_s=1), KEPT),
        (Retention(ttl_s=1800), KEPT + 1),
        (Retention(ttl_s=1801), KEPT + 2),
        (Retention(ttl_s=float("inf")), len(TTL_S) - 1),
    ],
)
def test_a_ttl_is_rounded_up(retention: Retention, level: int) -> None:
    assert retention.level == level
    assert retention.ttl_s is None or retention.priority == "low" or TTL_S[level] >= retention.ttl_s


# -- order --


def test_one_shots_go_before_sessions_before_shared_heads_before_kept() -> None:
    pool = make_pool(8)
    for level, tokens in ((KEPT, A), (SHARED, B), (CONTINUED, C), (ONE_SHOT, D)):
        serve(pool, tokens, now=0, level=level)
    for gone, left in ((D, C), (C, B), (B, A)):
        pool.allocate(2, 9)
        assert (matched(pool, gone), matched(pool, left)) == (0, 4)
        pool.check_integrity()


def test_a_session_grows_old_half_as_fast_as_a_one_shot() -> None:
    pool = make_pool(4)
    serve(pool, A, now=0, level=CONTINUED)
    serve(pool, B, now=60)
    lose(pool, 2, 119)
    assert (matched(pool, A), matched(pool, B)) == (0, 4), "119 s of a session are more than 59 s of a one-shot"
    serve(pool, A, now=120, level=CONTINUED)
    lose(pool, 2, 121)
    assert (matched(pool, A), matched(pool, B)) == (4, 0)


def test_nothing_expires_while_there_are_empty_blocks() -> None:
    pool = make_pool(4)
    serve(pool, A, now=0)
    lose(pool, 2, 1e9)
    assert matched(pool, A) == 4


def test_the_expired_go_first_whatever_they_were_worth() -> None:
    pool = make_pool(6)
    serve(pool, A, now=0, level=KEPT)
    serve(pool, B, now=0, level=KEPT + 1)
    serve(pool, C, now=600)
    lose(pool, 1, 600)
    assert (matched(pool, A), matched(pool, B), matched(pool, C)) == (4, 4, 2), "600 s are not over yet"
    lose(pool, 3, 601)
    assert (matched(pool, A), matched(pool, B), matched(pool, C)) == (0, 4, 2)
    assert [pool.loss(h) for h in hashes_of(pool, A)] == [Loss("expired", 601, 601)] * 2


def test_use_renews_a_ttl() -> None:
    pool = make_pool(4)
    serve(pool, A, now=0, level=KEPT)
    serve(pool, B, now=1)
    serve(pool, A, now=599)
    lose(pool, 2, 700)
    assert (matched(pool, A), matched(pool, B)) == (4, 0)


# -- pins --


def test_a_pinned_path_is_never_evicted_and_not_counted_as_free() -> None:
    pool = make_pool(8)
    serve(pool, A, now=0)
    serve(pool, B, now=1)
    assert pool.pin(ROOT, hashes_of(pool, A + D)) == 2, "as much of it as is stored"
    assert pool.num_free_blocks == 6
    lose(pool, 6, 1e6)
    assert (matched(pool, A), matched(pool, B)) == (4, 0)
    path = store(pool, A, now=1e6)
    assert pool.num_free_blocks == 6
    pool.free(path, 1e6)
    assert pool.num_free_blocks == 6
    pool.check_integrity()


def test_a_path_is_pinned_once_and_a_longer_one_is_another_pin() -> None:
    pool = make_pool(8)
    serve(pool, A + B, now=0)
    short, long = hashes_of(pool, A), hashes_of(pool, A + B)
    assert [pool.pin(ROOT, path) for path in (short, short, long)] == [2, 2, 4]
    assert pool.num_pinned_blocks == 4
    assert pool.unpin(ROOT, long, 5) == 4
    assert (pool.num_pinned_blocks, pool.num_free_blocks) == (2, 6)
    pool.check_integrity()
    assert pool.unpin(ROOT, long, 5) == 2, "the next longest on this path"
    assert pool.unpin(ROOT, long, 5) == 0
    assert pool.num_free_blocks == 8
    lose(pool, 7, 6)
    assert matched(pool, A + B) == 2, "unpinned blocks are back in their queue, tail first"


def test_a_held_block_can_be_pinned_and_unpinned() -> None:
    pool = make_pool(8)
    path = store(pool, A)
    pool.pin(ROOT, hashes_of(pool, A))
    pool.free(path, 1)
    path = store(pool, A)
    pool.unpin(ROOT, hashes_of(pool, A), 2)
    assert pool.num_free_blocks == 6
    pool.free(path, 3)
    assert pool.num_free_blocks == 8
    pool.check_integrity()


def test_an_unpinned_path_counts_as_used_when_it_is_unpinned() -> None:
    pool = make_pool(8)
    serve(pool, A, now=0)
    pool.pin(ROOT, hashes_of(pool, A))
    serve(pool, B, now=5)
    pool.unpin(ROOT, hashes_of(pool, A), 10)
    pool.check_integrity()
    lose(pool, 6, 11)
    assert (matched(pool, A), matched(pool, B)) == (4, 0)


def test_pins_are_bounded() -> None:
    pool = make_pool(6)
    serve(pool, A, now=0)
    serve(pool, B, now=0)
    pool.pin(ROOT, hashes_of(pool, A))
    with pytest.raises(PinLimitExceeded) as refusal:
        pool.pin(ROOT, hashes_of(pool, B))
    error = refusal.value
    assert (error.num_wanted_blocks, error.num_pinned_blocks, error.max_pinned_blocks) == (2, 2, 3)
    assert pool.num_free_blocks == 4
    pool.check_integrity()


def test_another_roots_path_is_not_pinned() -> None:
    pool = make_pool()
    serve(pool, A, now=0)
    other = BlockHash(b"x" * 16)
    assert pool.pin(other, hashes_of(pool, A)) == 0
    pool.pin(ROOT, hashes_of(pool, A))
    assert pool.unpin(other, hashes_of(pool, A), 0) == 0


def test_dropping_ends_the_pins_below() -> None:
    pool = make_pool(8)
    serve(pool, A + B, now=0)
    long = hashes_of(pool, A + B)
    pool.pin(ROOT, long)
    pool.drop(ROOT, long[2], 1)
    assert pool.num_pinned_blocks == 0
    pool.check_integrity()
    assert matched(pool, A + B) == 4


# -- budgets --


def test_who_is_over_its_budget_loses_its_own_first() -> None:
    pool = make_pool(16)
    pool.set_budget("ada", 3)
    serve(pool, D, now=0, owner="bob")
    serve(pool, A, now=1, level=CONTINUED, owner="ada")
    serve(pool, B, now=1, owner="ada")
    assert (matched(pool, A), matched(pool, B), matched(pool, D)) == (4, 2, 4)
    loss = pool.loss(hashes_of(pool, B)[1])
    assert loss is not None and loss.reason == "budget"
    pool.check_integrity()


def test_a_request_larger_than_the_budget_runs_and_is_cut_back() -> None:
    pool = make_pool(8)
    pool.set_budget("ada", 3)
    path = store(pool, A + B + C, owner="ada")
    pool.check_integrity()
    assert matched(pool, A + B + C) == 12
    pool.free(path, 1)
    assert matched(pool, A + B + C) == 6
    pool.check_integrity()


def test_what_exceeds_a_budget_goes_first_when_room_is_needed() -> None:
    pool = make_pool(8)
    pool.set_budget("ada", 2)
    serve(pool, D, now=0, owner="bob")
    serve(pool, A, now=1, owner="ada")
    running = store(pool, B, now=2, owner="ada")
    pool.allocate(3, 3)
    assert (matched(pool, A), matched(pool, D)) == (0, 4), "bob's is older, but ada is over her budget"
    pool.free(running, 4)
    pool.check_integrity()


def test_a_budget_applies_to_what_is_stored_already_and_can_be_lifted() -> None:
    pool = make_pool(16)
    serve(pool, A, now=0, owner="ada")
    serve(pool, B, now=1, owner="ada")
    pool.set_budget("ada", 3)
    pool.check_integrity()
    lose(pool, 1, 2)
    assert (matched(pool, A), matched(pool, B)) == (2, 4)
    pool.set_budget("ada", 0)
    serve(pool, C, now=3, owner="ada")
    assert (matched(pool, A), matched(pool, B), matched(pool, C)) == (2, 4, 4)
    pool.check_integrity()


def test_a_pinned_path_counts_in_its_owners_budget() -> None:
    pool = make_pool(16)
    pool.set_budget("ada", 3)
    serve(pool, A, now=0, owner="ada")
    pool.pin(ROOT, hashes_of(pool, A))
    serve(pool, B, now=1, owner="ada")
    assert (matched(pool, A), matched(pool, B)) == (4, 2)
    pool.check_integrity()


def test_owners_without_a_budget_cost_nothing() -> None:
    budgets = Budgets()
    assert not budgets.by_owner and list(budgets.excess(0.0)) == []


# -- what is remembered --


def test_a_loss_says_why_when_and_how_long_unused_until_the_block_is_stored_again() -> None:
    pool = make_pool(2)
    serve(pool, A, now=10)
    lose(pool, 2, 15)
    hashes = hashes_of(pool, A)
    assert [pool.loss(h) for h in hashes] == [Loss("evicted", 15, 5)] * 2
    serve(pool, A, now=20)
    assert [pool.loss(h) for h in hashes] == [None, None]
    pool.drop(ROOT, hashes[1], 30)
    assert [pool.loss(h) for h in hashes] == [None, Loss("dropped", 30, 10)]


def test_losses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "MAX_LOSSES", 3)
    ring = Losses()
    names = [BlockHash(bytes([index]) * 16) for index in range(5)]
    for name in names:
        ring.record(name, "evicted", 0, 0)
    assert [ring.get(name) is not None for name in names] == [False, False, True, True, True]
    assert len(ring) == 3
