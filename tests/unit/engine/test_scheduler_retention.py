"""What requests leave in the pool through the scheduler: levels, budgets, drops under way, and room beside pins."""

import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.engine.config import EngineConfig
from sessions.engine.pins import PinLimitExceeded
from sessions.engine.request import Request, Stored
from sessions.engine.retention import CONTINUED, KEPT, ONE_SHOT, SHARED, Retention
from tests.unit.engine.bench import Bench, expected
from tests.unit.engine.pools import matched

PROMPT = list(range(1, 13))
"""Three blocks of 4."""


def ask(bench: Bench, prompt: list[int], **retention: object) -> Request:
    request = bench.add(prompt)
    for name, value in retention.items():
        setattr(request, name, value)
    bench.run()
    return request


def levels(bench: Bench, request: Request) -> list[int]:
    pool = bench.scheduler.pool
    return [block.level for block in pool.match(request.root, request.chain.hashes, request.token_ids).blocks]


def test_a_second_turn_makes_a_session_and_a_third_party_a_shared_head() -> None:
    bench = Bench()
    first = ask(bench, PROMPT)
    assert levels(bench, first) == [ONE_SHOT] * 3
    second = ask(bench, [*first.token_ids, 40, 41])
    assert levels(bench, second) == [CONTINUED] * 5
    stranger = ask(bench, [*PROMPT[:8], 44, 45, 46, 47])
    assert levels(bench, second) == [SHARED, SHARED, CONTINUED, CONTINUED, CONTINUED]
    assert levels(bench, stranger) == [SHARED, SHARED, ONE_SHOT]


def test_a_request_keeps_all_of_it_or_what_is_before_a_breakpoint() -> None:
    bench = Bench()
    assert levels(bench, ask(bench, PROMPT, retention=Retention(ttl_s=1800))) == [KEPT + 1] * 3
    marked = ask(bench, [30, *PROMPT], retentions=((5, Retention(ttl_s=3600)), (99, Retention(priority="high"))))
    assert levels(bench, marked) == [KEPT + 2, KEPT + 2, KEPT, KEPT]


def test_what_is_known_to_come_back_is_a_session_from_the_start() -> None:
    bench = Bench()
    assert levels(bench, ask(bench, PROMPT, level=CONTINUED)) == [CONTINUED] * 3
    beside = ask(bench, [*PROMPT[:8], 44, 45, 46, 47], level=CONTINUED)
    assert levels(bench, beside) == [SHARED, SHARED, CONTINUED]


def test_low_priority_raises_nothing() -> None:
    bench = Bench()
    low = Retention(priority="low")
    first = ask(bench, PROMPT, retention=low)
    second = ask(bench, [*first.token_ids, 40, 41], retention=low)
    assert second.num_cached_tokens == first.num_tokens - 1
    assert levels(bench, second) == [ONE_SHOT] * 5


def test_a_preempted_request_is_not_its_own_later_request() -> None:
    bench = Bench(num_blocks=10)
    requests = [bench.add([index] * 6, max_tokens=20) for index in range(3)]
    bench.run()
    assert bench.scheduler.num_preemptions > 0
    assert all(request.level == ONE_SHOT for request in requests)


def test_what_is_dropped_while_a_request_runs_is_not_said_to_be_stored() -> None:
    bench = Bench()
    request = bench.add(PROMPT, max_tokens=9)
    bench.step()
    hashes = request.chain.hashes[:3]
    assert bench.scheduler.pool.drop(request.root, hashes[1], 0.0) == 8
    outputs = []
    while bench.scheduler.has_work:
        schedule = bench.scheduler.schedule()
        outputs += bench.scheduler.commit(schedule, bench.runner.execute(schedule))
        bench.scheduler.check_integrity()
    assert outputs[-1].finish_reason == "length"
    assert outputs[-1].stored == (Stored(request.root, tuple(hashes[:1]), None),)
    assert request.token_ids == expected(request)
    assert bench.scheduler.pool.num_cached_blocks == 1


def test_an_owner_is_cut_back_to_its_budget_when_its_requests_end() -> None:
    bench = Bench()
    bench.scheduler.pool.set_budget("ada", 2)
    request = bench.add(PROMPT)
    request.owner = "ada"
    bench.step()
    assert bench.scheduler.pool.num_cached_blocks == 3
    bench.run()
    assert bench.scheduler.pool.num_cached_blocks == 2
    assert request.token_ids == expected(request)


@pytest.mark.parametrize("num_blocks", [1, 4, 17, 32, 64, 1000])
@pytest.mark.parametrize("max_model_len", [1, 60, 64, 1000])
def test_pins_leave_room_for_the_longest_request(num_blocks: int, max_model_len: int) -> None:
    config = EngineConfig(block_size=4, num_blocks=num_blocks, max_model_len=max_model_len)
    longest = min(max_model_len, config.pool_tokens)
    assert 0 <= config.max_pinned_blocks <= num_blocks // 2
    assert longest <= (num_blocks - config.max_pinned_blocks) * 4


def test_pinned_blocks_that_a_request_reuses_take_no_room_from_it() -> None:
    bench = Bench(num_blocks=16, max_model_len=40)
    first = ask(bench, PROMPT)
    assert bench.scheduler.pool.pin(first.root, first.chain.hashes) == 3
    large = ask(bench, [*PROMPT, *range(44)])
    assert large.num_cached_tokens == 12
    assert large.token_ids == expected(large)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_answers_do_not_depend_on_what_is_pinned_dropped_or_cut_back(data: st.DataObject) -> None:
    bench = Bench(num_blocks=data.draw(st.integers(12, 24)), max_model_len=20)
    pool = bench.scheduler.pool
    pool.set_budget("ada", data.draw(st.integers(1, 6)))
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "continue", "step", "step", "pin", "unpin", "drop"]))
        past = data.draw(st.sampled_from(bench.requests)) if bench.requests else None
        if action == "step":
            bench.step()
        elif action == "add" or past is None:
            new = bench.add(data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=14)))
            new.owner = data.draw(st.sampled_from(["ada", None]))
            new.retention = data.draw(st.sampled_from([Retention(), Retention(3600), Retention(priority="low")]))
        elif action == "continue" and past.status.value == "finished" and past.num_tokens < 15:
            bench.add([*past.token_ids, 1])
        elif action == "pin":
            with suppress(PinLimitExceeded):
                pool.pin(past.root, past.chain.hashes)
        elif action == "unpin":
            pool.unpin(past.root, past.chain.hashes, time.monotonic())
        elif action == "drop":
            at = data.draw(st.sampled_from([None, *past.chain.hashes]))
            pool.drop(past.root, at, time.monotonic())
        bench.scheduler.check_integrity()
    bench.run()
    assert all(request.token_ids == expected(request) for request in bench.requests)


def test_a_tail_that_was_stored_already_counts_as_used_by_who_computed_it_again() -> None:
    """Who reads nothing computes what an idle block has: then that one is not the next that the budget takes."""
    bench = Bench()
    pool = bench.scheduler.pool
    pool.set_budget("ada", 4)
    first = bench.add([7, 7, 7, 7, 8], max_tokens=3, owner="ada")
    bench.run()
    other = bench.add([9, 9, 9, 9, 8], max_tokens=3, owner="ada")
    bench.run()
    again = bench.add([7, 7, 7, 7, 8], max_tokens=3, owner="ada")
    again.read_points = ()
    bench.step()
    pool.set_budget("ada", 3)
    bench.run()
    assert again.num_cached_tokens == 0 and again.token_ids == first.token_ids
    assert matched(pool, again.token_ids, again.root) == 7
    assert matched(pool, other.token_ids, other.root) == 4
