"""Blocks from a lower tier at admission. The fake model's next token hangs on all KV before it."""

import numpy as np
import pytest

from sessions.engine.request import Request, RestoredBlocks
from tests.unit.engine.bench import Bench, expected

PROMPT = list(range(1, 23))
"""5 whole blocks of 4, and a tail of 2."""


def saved(bench: Bench, request: Request, first: int, end: int) -> RestoredBlocks:
    """Blocks [first, end) of a finished request's prompt, as the writer would copy them."""
    blocks = [bench.scheduler.pool.find(block_hash) for block_hash in request.chain.hashes[first:end]]
    payload = np.zeros((end - first, bench.runner.block_bytes), np.uint8)
    bench.runner.read_blocks([block.id for block in blocks if block], payload)
    return RestoredBlocks(first, payload)


@pytest.fixture(scope="module")
def origin() -> tuple[Bench, Request]:
    bench = Bench()
    request = bench.add(PROMPT)
    bench.run()
    return bench, request


@pytest.mark.parametrize("end", range(1, 6))
def test_restored_blocks_are_not_computed_again(origin: tuple[Bench, Request], end: int) -> None:
    bench = Bench(max_num_draft_tokens=0)
    request = bench.add(PROMPT)
    request.restored = (saved(*origin, 0, end),)
    bench.run()
    assert request.token_ids == expected(request)
    assert request.num_cached_tokens == request.num_restored_tokens == 4 * end
    assert bench.runner.num_computed_tokens == len(PROMPT) - 4 * end + request.max_tokens - 1
    again = bench.add(PROMPT)
    bench.run()
    assert again.num_cached_tokens == len(PROMPT) - 1, "they are registered like computed ones"
    assert again.num_restored_tokens == 0


@pytest.mark.parametrize("num_held", range(6))
def test_what_the_pool_holds_meanwhile_is_not_loaded(origin: tuple[Bench, Request], num_held: int) -> None:
    bench = Bench()
    bench.add([*PROMPT[: 4 * num_held], 40])
    bench.run()
    request = bench.add(PROMPT)
    request.restored = (saved(*origin, 0, 2), saved(*origin, 2, 5))
    bench.run()
    assert request.token_ids == expected(request)
    assert request.num_cached_tokens == 20
    assert request.num_restored_tokens == 20 - 4 * num_held


def test_what_does_not_join_the_pools_part_is_not_used(origin: tuple[Bench, Request]) -> None:
    """Its first block was in the pool when the rest was read, and is evicted since."""
    bench = Bench()
    request = bench.add(PROMPT)
    request.restored = (saved(*origin, 1, 5),)
    bench.run()
    assert request.token_ids == expected(request)
    assert request.num_cached_tokens == 0


def test_choices_load_once(origin: tuple[Bench, Request]) -> None:
    bench = Bench(max_num_draft_tokens=0)
    choices = [bench.add(PROMPT) for _ in range(3)]
    for choice in choices:
        choice.restored = (saved(*origin, 0, 5),)
    bench.run()
    assert [choice.token_ids for choice in choices] == [expected(choice) for choice in choices]
    assert [choice.num_restored_tokens for choice in choices] == [20, 0, 0]


def test_two_who_restore_the_same_beginning_end_with_one_copy(origin: tuple[Bench, Request]) -> None:
    bench = Bench()
    requests = [bench.add(PROMPT), bench.add([*PROMPT[:12], 44, 45, 46, 47, 48])]
    requests[0].restored = (saved(*origin, 0, 5),)
    requests[1].restored = (saved(*origin, 0, 3),)
    bench.run()
    assert [request.token_ids for request in requests] == [expected(request) for request in requests]


def test_a_preempted_request_recovers(origin: tuple[Bench, Request]) -> None:
    bench = Bench(num_blocks=14)
    requests = [bench.add(PROMPT, max_tokens=12), bench.add([*PROMPT[:16], 40, 41, 42, 43, 44, 45], max_tokens=12)]
    requests += [bench.add([9] * 20, max_tokens=12)]
    for request in requests[:2]:
        request.restored = (saved(*origin, 0, 4),)
    bench.run()
    assert bench.scheduler.num_preemptions > 0
    assert [request.token_ids for request in requests] == [expected(request) for request in requests]


def test_an_aborted_request_leaves_nothing_behind(origin: tuple[Bench, Request]) -> None:
    bench = Bench(max_num_batched_tokens=8)
    request = bench.add([*PROMPT, *range(24, 49)])
    request.restored = (saved(*origin, 0, 5),)
    bench.step()
    assert bench.scheduler.abort(request.id)
    bench.scheduler.check_integrity()
    again = bench.add(PROMPT)
    bench.run()
    assert again.token_ids == expected(again)
    assert again.num_cached_tokens == len(PROMPT) - 1
