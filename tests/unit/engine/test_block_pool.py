"""The block pool by numbers that can be counted on fingers: block size 4. Matching, sharing, dropping, listing."""

import pytest

from sessions.engine.block_pool import BlockPool, PoolExhausted
from sessions.engine.holdings import Holding
from sessions.hashing import HashChain, chain_hashes
from sessions.types import BlockHash
from tests.unit.engine.pools import ROOT, hashes_of, matched, serve, store

OTHER_ROOT = BlockHash(b"x" * 16)


def test_match_is_token_granular() -> None:
    pool = BlockPool(8, 4)
    store(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert matched(pool, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]) == 10
    assert matched(pool, [1, 2, 3, 4, 5, 6, 99, 8]) == 6
    assert matched(pool, [1, 2, 99]) == 2
    assert matched(pool, [99]) == 0
    pool.check_integrity()


def test_another_root_shares_nothing() -> None:
    pool = BlockPool(8, 4)
    store(pool, [1, 2, 3, 4, 5])
    assert matched(pool, [1, 2, 3, 4, 5], OTHER_ROOT) == 0


def test_the_tail_is_evicted_before_the_head() -> None:
    pool = BlockPool(3, 4)
    table = store(pool, list(range(12)))
    pool.free(table, 0.0)
    (taken,) = pool.allocate(1, 0.0)
    assert taken is table[2]
    assert matched(pool, list(range(12))) == 8
    assert pool.take_removed() == [chain_hashes(ROOT, list(range(12)), 4)[2]]
    pool.check_integrity()


def test_equal_content_is_stored_once() -> None:
    pool = BlockPool(4, 4)
    first = store(pool, [1, 2, 3, 4])
    (twin,) = pool.allocate(1, 0.0)
    kept = pool.register_full(twin, ROOT, None, chain_hashes(ROOT, [1, 2, 3, 4], 4)[0], (1, 2, 3, 4))
    assert kept is first[0] and kept.ref_count == 2 and twin.ref_count == 0
    pool.check_integrity()


def test_a_hash_collision_is_a_miss() -> None:
    pool = BlockPool(4, 4)
    store(pool, [1, 2, 3, 4])
    stolen = chain_hashes(ROOT, [1, 2, 3, 4], 4)
    assert pool.match(ROOT, stolen, [9, 9, 9, 9]).blocks == []
    chain = HashChain(ROOT, 4)
    chain.extend([9, 9, 9, 9, 5])
    chain.hashes = stolen
    assert pool.match_prompt(chain, [9, 9, 9, 9, 5]).blocks == []
    (other,) = pool.allocate(1, 0.0)
    assert pool.register_full(other, ROOT, None, stolen[0], (9, 9, 9, 9)) is other
    assert not other.is_registered
    pool.check_integrity()


def test_allocate_is_all_or_nothing() -> None:
    pool = BlockPool(3, 4)
    serve(pool, [1, 2, 3, 4], now=0)
    with pytest.raises(PoolExhausted):
        pool.allocate(4, 1.0)
    assert pool.num_free_blocks == 3 and matched(pool, [1, 2, 3, 4]) == 4


def test_dropped_blocks_are_empty_at_once_and_their_ancestors_stay() -> None:
    pool = BlockPool(8, 4)
    serve(pool, list(range(12)), now=0)
    serve(pool, [*range(8), 90, 91], now=0)
    serve(pool, [1, 2], OTHER_ROOT, now=0)
    hashes = hashes_of(pool, list(range(12)))
    assert pool.drop(ROOT, hashes[1], 5.0) == 4 + 4 + 2
    assert matched(pool, list(range(12))) == 4
    assert set(pool.take_removed()) == set(hashes[1:])
    assert pool.drop(ROOT, hashes[1], 5.0) == 0
    assert pool.drop(OTHER_ROOT, hashes[0], 5.0) == 0, "another root's block"
    assert pool.drop(ROOT, None, 5.0) == 4
    assert matched(pool, [1, 2], OTHER_ROOT) == 2
    assert pool.num_evicted_blocks == 0
    pool.check_integrity()


def test_a_dropped_block_in_use_is_found_by_nobody_and_empty_once_freed() -> None:
    pool = BlockPool(4, 4)
    path = store(pool, list(range(10)))
    hashes = hashes_of(pool, list(range(10)))
    assert pool.drop(ROOT, None, 1.0) == 10
    assert pool.take_removed() == hashes[::-1]
    assert matched(pool, list(range(10))) == 0
    assert pool.continuation(ROOT, None, (), 4) == ()
    assert pool.num_free_blocks == 1, "its holder still needs it"
    (last,) = pool.allocate(1, 1.0)
    pool.register_partial(last, ROOT, path[1], (7,))
    assert not last.is_registered, "nothing follows a dropped block"
    pool.free([*path, last], 2.0)
    assert pool.num_free_blocks == 4
    pool.check_integrity()


def test_what_was_dropped_can_be_stored_anew_while_its_holder_lives() -> None:
    pool = BlockPool(4, 4)
    old = store(pool, list(range(8)))
    pool.drop(ROOT, None, 1.0)
    serve(pool, list(range(8)), now=2)
    pool.free(old, 3.0)
    assert matched(pool, list(range(8))) == 8
    pool.check_integrity()


def test_holdings_are_the_paths_with_what_they_share() -> None:
    pool = BlockPool(16, 4)
    serve(pool, list(range(8)), now=0)
    serve(pool, [*range(12), 50, 51], now=10)
    serve(pool, [*range(8), 90, 91, 92, 93], now=20)
    serve(pool, [*range(12), 50, 51, 60], now=30)
    assert pool.pin(ROOT, hashes_of(pool, [*range(8), 90, 91, 92, 93])) == 3
    first, second = sorted(pool.census.holdings([ROOT, OTHER_ROOT], 100.0), key=lambda holding: holding.num_tokens)
    assert first == Holding(
        root=ROOT,
        leaf_hash=hashes_of(pool, [*range(8), 90, 91, 92, 93])[-1],
        num_tokens=12,
        num_declared_tokens=0,
        num_shared_tokens=8,
        age_s=80.0,
        num_hits=0,
        ttl_s=None,
        is_pinned=True,
    )
    assert (second.num_tokens, second.num_shared_tokens, second.num_hits) == (15, 8, 1)
    assert (second.age_s, second.ttl_s, second.is_pinned) == (70.0, 530.0, False)
    assert second.leaf_hash == hashes_of(pool, list(range(12)))[-1]


def test_hits_of_a_lost_tail_count_for_what_is_left() -> None:
    pool = BlockPool(4, 4)
    for now, end in enumerate((8, 12, 14)):
        serve(pool, list(range(end)), now=now)
    assert [holding.num_hits for holding in pool.census.holdings([ROOT], 5.0)] == [2]
    pool.allocate(2, 5.0)
    assert [(holding.num_tokens, holding.num_hits) for holding in pool.census.holdings([ROOT], 5.0)] == [(8, 2)]
    pool.check_integrity()


def test_a_held_path_is_not_growing_old() -> None:
    pool = BlockPool(4, 4)
    store(pool, [1, 2, 3])
    (holding,) = pool.census.holdings([ROOT], 900.0)
    assert (holding.age_s, holding.ttl_s, holding.leaf_hash) == (0.0, 600.0, None)


def test_roots_by_owner() -> None:
    pool = BlockPool(8, 4)
    serve(pool, [1, 2, 3, 4, 5], now=0, owner="ada")
    serve(pool, [1, 2], OTHER_ROOT, now=0, owner="bob")
    assert [pool.census.roots_of(owner) for owner in ("ada", "bob", "eve")] == [[ROOT], [OTHER_ROOT], []]
    pool.drop(ROOT, None, 0.0)
    assert pool.census.roots_of("ada") == []


def test_the_tails_after_a_block_go_without_what_is_full() -> None:
    pool = BlockPool(8, 4)
    serve(pool, list(range(8)), now=0)
    serve(pool, [*range(4), 50, 51], now=0)
    serve(pool, [*range(4), 60], now=0)
    (head,) = hashes_of(pool, list(range(4)))
    assert pool.census.num_tail_tokens(head) == 3
    assert pool.drop_tails(head, 0.0) == 3
    assert (matched(pool, list(range(8))), matched(pool, [*range(4), 50, 51])) == (8, 4)
    assert pool.drop_tails(head, 0.0) == pool.census.num_tail_tokens(head) == 0
    pool.check_integrity()
