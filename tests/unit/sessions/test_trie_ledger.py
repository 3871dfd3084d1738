"""Ledger and Breaker, which are pure: hashes are letters, time is a number."""

import pytest

from sessions.index.breaker import Breaker
from sessions.index.ledger import Chain, Cut, Ledger
from sessions.types import BlockHash

ROOT = BlockHash(b"root")


def blocks(path: str) -> tuple[BlockHash, ...]:
    return tuple(BlockHash(path[: i + 1].encode()) for i in range(len(path)))


def ledger_with(*paths: str, max_chains: int = 100, max_evictions: int = 100) -> Ledger:
    """A ledger that holds `paths` and has told them."""
    ledger = Ledger(max_chains=max_chains, max_evictions=max_evictions)
    for path in paths:
        ledger.publish(ROOT, blocks(path))
    told(ledger)
    return ledger


def told(ledger: Ledger) -> list[str]:
    """The claims that wait, as paths."""
    paths = []
    while chain := ledger.next_chain():
        assert chain == Chain(ROOT, chain.blocks, ledger.incarnation)
        paths.append(chain.blocks[-1].decode())
    return paths


def evict(ledger: Ledger, *paths: str, now: float = 0.0) -> None:
    ledger.evicted([BlockHash(path.encode()) for path in paths], now)


def cuts(ledger: Ledger, now: float = 10.0) -> list[tuple[str, int]]:
    """The cuts that are due, as (path to the deepest block, first block withdrawn)."""
    due = []
    while cut := ledger.next_cut(now, delay_s=1.0):
        due.append((cut.blocks[-1].decode(), cut.start))
    return due


def test_a_conversation_that_grew_replaces_its_shorter_self() -> None:
    ledger = Ledger(max_chains=100, max_evictions=100)
    for path in ("ab", "xy", "abcd", "abcd"):
        ledger.publish(ROOT, blocks(path))
    assert told(ledger) == ["xy", "abcd"]


def test_the_caller_may_go_on_with_its_list() -> None:
    ledger = Ledger(max_chains=100, max_evictions=100)
    chain = list(blocks("abc"))
    ledger.publish(ROOT, chain)
    chain.append(BlockHash(b"not computed yet"))
    assert told(ledger) == ["abc"]


def test_past_the_bound_the_oldest_claim_is_dropped_and_a_resync_is_due() -> None:
    ledger = ledger_with(max_chains=2)
    assert ledger.begin_resync() is None
    for path in ("a", "b", "c"):
        ledger.publish(ROOT, blocks(path))
    assert told(ledger) == ["b", "c"]
    assert ledger.num_dropped == 1
    assert ledger.begin_resync() == ledger.incarnation


def test_a_waiting_claim_is_cut_down_to_what_is_still_held() -> None:
    ledger = Ledger(max_chains=100, max_evictions=100)
    ledger.publish(ROOT, blocks("abcd"))
    ledger.publish(ROOT, blocks("xy"))
    evict(ledger, "abcd", "abc", "xy", "x")
    assert told(ledger) == ["ab"]


def test_evictions_of_one_branch_are_one_cut_after_a_delay() -> None:
    ledger = ledger_with("abcdef")
    evict(ledger, "abcdef", now=5.0)
    evict(ledger, "abcde", "abcd", now=5.5)
    assert cuts(ledger, now=5.9) == []
    assert ledger.cut_wait_s(5.5, delay_s=1.0) == 0.5
    assert cuts(ledger, now=6.0) == [("abcdef", 3)]
    assert ledger.cut_wait_s(6.0, delay_s=1.0) == float("inf")


def test_side_branches_are_cut_before_the_trunk_they_hang_from() -> None:
    ledger = ledger_with("abcd", "abxy")
    evict(ledger, "abcd", "abc", "abxy", "abx", "ab", "a")
    assert cuts(ledger) == [("abcd", 2), ("abxy", 0)]


def test_a_cut_knows_its_chain_when_the_trunk_is_evicted_after_it() -> None:
    ledger = ledger_with("abcd", "xy")
    evict(ledger, "abcd")
    assert ledger.next_cut(10.0, 1.0) == Cut(ROOT, blocks("abcd"), 3, ledger.incarnation)
    evict(ledger, "abc", "ab")
    assert cuts(ledger) == [("abc", 1)]


def test_what_came_back_before_the_cut_is_not_cut() -> None:
    ledger = ledger_with("abcd")
    evict(ledger, "abcd", "abc")
    ledger.publish(ROOT, blocks("abc"))
    assert told(ledger) == ["abc"]
    assert cuts(ledger) == [("abcd", 3)]


def test_a_cut_that_failed_is_retried_against_what_is_held_by_then() -> None:
    ledger = ledger_with("abcd")
    evict(ledger, "abcd", "abc")
    cut = ledger.next_cut(10.0, 1.0)
    assert cut is not None
    ledger.retry(cut)
    ledger.publish(ROOT, blocks("abcd"))
    assert cuts(ledger) == []


def test_a_repair_withdraws_what_is_not_held() -> None:
    ledger = ledger_with("ab")
    ledger.repair(ROOT, blocks("abcd"))
    assert cuts(ledger) == [("abcd", 2)]


def test_an_eviction_of_what_was_never_published_is_nothing() -> None:
    ledger = ledger_with("ab")
    evict(ledger, "q", "ab", "ab")
    assert cuts(ledger) == [("ab", 1)]


def test_lost_evictions_cost_the_incarnation_and_a_resync() -> None:
    ledger = ledger_with("abc", max_evictions=2)
    before = ledger.incarnation
    evict(ledger, "abc", "ab", "a")
    assert ledger.incarnation == before
    ledger.settle()
    assert ledger.incarnation != before
    assert ledger.retired() == before and ledger.retired() is None
    assert ledger.begin_resync() == ledger.incarnation
    assert ledger.num_dropped == 3 and cuts(ledger) == []


def test_an_emptied_pool_is_another_life() -> None:
    ledger = ledger_with("abc")
    before = ledger.incarnation
    ledger.publish(ROOT, blocks("abcd"))
    evict(ledger, "abcd")
    ledger.clear()
    assert (told(ledger), cuts(ledger), ledger.num_held(blocks("abc"))) == ([], [], 0)
    assert ledger.incarnation != before and ledger.retired() == before


def test_fresh_claims_go_before_those_of_a_resync() -> None:
    ledger = ledger_with()
    ledger.lost_claims()
    incarnation = ledger.begin_resync()
    assert incarnation is not None
    ledger.learn(incarnation, [(ROOT, blocks("abc")), (ROOT, blocks("xy"))])
    ledger.publish(ROOT, blocks("new"))
    assert told(ledger) == ["new", "abc", "xy"]
    evict(ledger, "abc")
    assert cuts(ledger) == [("abc", 2)]


def test_a_snapshot_does_not_bring_back_what_was_evicted_meanwhile() -> None:
    ledger = ledger_with("abc")
    ledger.lost_claims()
    incarnation = ledger.begin_resync()
    assert incarnation is not None
    evict(ledger, "abc", "ab")
    ledger.learn(incarnation, [(ROOT, blocks("abc"))])
    assert told(ledger) == ["a"]
    assert ledger.num_held(blocks("abc")) == 1


def test_a_snapshot_of_an_emptied_pool_is_not_learned() -> None:
    ledger = ledger_with("abc")
    ledger.lost_claims()
    incarnation = ledger.begin_resync()
    assert incarnation is not None
    ledger.clear()
    ledger.learn(incarnation, [(ROOT, blocks("abc"))])
    assert told(ledger) == [] and ledger.num_held(blocks("abc")) == 0


def test_a_breaker_opens_after_failures_in_a_row_and_one_probe_decides() -> None:
    breaker = Breaker(threshold=3, open_s=0.5)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for now in (1.0, 1.1, 1.2):
        assert breaker.admit(now)
        breaker.failed(now)
    assert not breaker.is_closed and not breaker.admit(1.5) and not breaker.is_ready(1.5)
    assert breaker.wait_s(1.6) == pytest.approx(0.1)
    assert breaker.is_ready(1.7) and breaker.admit(1.7)
    assert not breaker.admit(1.8), "one probe at a time"
    breaker.failed(1.8)
    assert not breaker.admit(2.2)
    assert breaker.admit(2.3)
    breaker.succeeded()
    assert breaker.is_closed and breaker.admit(2.3) and breaker.wait_s(2.3) == 0.0
