"""What the operator declared shared is computed once for all; what follows it is each one's own. Blocks of 4 tokens."""

import time

import pytest

from sessions.engine.request import Request, Stored
from sessions.engine.retention import SHARED
from sessions.types import BlockHash
from tests.unit.engine.bench import Bench, expected, shared_content

DECLARED = list(range(10))
"""Two whole blocks, and two tokens of a third that is nobody's in common."""


def bench(**config: int) -> Bench:
    return Bench(shared_content([DECLARED], 4), **config)


def test_whole_blocks_of_declared_content_are_shared_and_not_a_token_more() -> None:
    one = bench()
    alice = one.add([*DECLARED, 20, 21, 22, 23], root=b"a", owner="alice")
    one.run()
    bob = one.add([*DECLARED, 20, 21, 22, 23], root=b"b", owner="bob")
    one.run()
    assert (alice.num_cached_tokens, bob.num_cached_tokens) == (0, 8)
    again = one.add([*DECLARED, 20, 21, 22, 23], root=b"b", owner="bob")
    one.run()
    assert again.num_cached_tokens == 13
    assert all(request.token_ids == expected(request) for request in one.requests)


def test_what_only_begins_like_it_is_shared_as_far_as_whole_blocks_do() -> None:
    one = bench()
    one.add([*DECLARED, 20], root=b"a")
    one.run()
    for prompt, shared in (([*DECLARED[:6], 30, 31, 32], 4), ([0, 1, 2, 30, 31, 32], 0), (DECLARED[1:], 0)):
        bob = one.add(prompt, root=b"b")
        one.run()
        assert bob.num_cached_tokens == shared and bob.token_ids == expected(bob)


def test_of_a_prompt_that_is_all_shared_the_last_token_alone_is_computed() -> None:
    one = bench()
    one.add(DECLARED[:8], root=b"a", max_tokens=0)
    one.run()
    bob = one.add(DECLARED[:8], root=b"b", max_tokens=2)
    one.run()
    assert bob.num_cached_tokens == 7 and bob.token_ids == expected(bob)


def test_shared_blocks_belong_to_nobody_and_count_in_no_budget() -> None:
    one = bench()
    pool = one.scheduler.pool
    pool.set_budget("alice", 1)
    alice = one.add([*DECLARED, *range(20, 30)], root=b"a", owner="alice", max_tokens=1)
    one.run()
    blocks = [pool.find(block_hash) for block_hash in alice.chain.hashes]
    assert [block and block.owner for block in blocks] == [None, None, "alice", None, None]
    assert [block.level for block in blocks[:2] if block] == [SHARED, SHARED]
    assert [block is None for block in blocks] == [False, False, False, True, True]


def test_what_follows_shared_blocks_goes_before_them() -> None:
    one = bench(num_blocks=8)
    alice = one.add([*DECLARED, *range(20, 28)], root=b"a", owner="alice", max_tokens=1)
    one.run()
    stranger = one.add(list(range(30, 50)), root=b"c", max_tokens=4)
    one.run()
    assert one.scheduler.pool.num_cached_prefix_blocks(alice.chain.hashes) == 2
    assert stranger.token_ids == expected(stranger)


def test_a_drop_takes_one_tenant_s_and_leaves_the_shared() -> None:
    one = bench()
    pool = one.scheduler.pool
    requests = [one.add([*DECLARED, 20, 21, 22, 23], root=root) for root in (b"a", b"b")]
    one.run()
    alice = requests[0]
    assert pool.drop(alice.root, alice.chain.hashes[1], 0.0) == 0, "its last block is shared"
    assert pool.drop(alice.root, None, 0.0) > 0
    pool.check_integrity()
    assert [pool.num_cached_prefix_blocks(request.chain.hashes) for request in requests] == [2, 4]


def test_a_pin_ends_in_its_owner_s_block() -> None:
    one = bench(max_model_len=40)
    pool = one.scheduler.pool
    requests = [one.add([*DECLARED, 20, 21, 22, 23], root=root) for root in (b"a", b"b")]
    one.run()
    alice, bob = requests
    assert pool.pin(alice.root, alice.chain.hashes[:2]) == 0
    assert pool.pin(alice.root, alice.chain.hashes) == 4
    assert pool.unpin(bob.root, bob.chain.hashes, time.monotonic()) == 0
    assert pool.unpin(alice.root, alice.chain.hashes, time.monotonic()) == 4
    pool.check_integrity()


def test_nobody_waits_for_another_tenant_s_own_tail() -> None:
    one = bench(max_num_batched_tokens=64)
    one.add(DECLARED, root=b"c", max_tokens=0)
    one.run()
    requests = [one.add([*DECLARED[:8], 20, 21, 22], root=root, max_tokens=2) for root in (b"a", b"b", b"b")]
    one.step()
    assert [request.num_cached_tokens for request in requests] == [8, 8, None], "only bob waits for bob"
    one.run()
    assert [request.num_cached_tokens for request in requests] == [8, 8, 10]
    assert all(request.token_ids == expected(request) for request in requests)


@pytest.mark.parametrize("limit", range(1, 11))
def test_a_tail_that_ends_inside_shared_content_is_its_tenant_s_own(limit: int) -> None:
    """As in explicit mode with a breakpoint there; and where an abort leaves a prompt half computed."""
    one = bench()
    prompt = [*DECLARED, 20, 21, 22]

    def ask(root: bytes) -> Request:
        request = one.add(prompt, root=root)
        request.write_limit, request.read_points = limit, (limit,)
        one.run()
        assert request.token_ids == expected(request)
        return request

    assert ask(b"a").num_cached_tokens == 0
    assert ask(b"a").num_cached_tokens == limit
    assert ask(b"b").num_cached_tokens == (limit if limit in (4, 8) else 0), "its read point is a block's end, or not"
    assert ask(b"b").num_cached_tokens == limit
    whole = one.add(prompt, root=b"a")
    one.run()
    assert whole.num_cached_tokens == limit and whole.token_ids == expected(whole)
    again = one.add([*prompt, 1], root=b"a")
    one.run()
    assert again.num_cached_tokens == len(prompt) and again.token_ids == expected(again)


def test_an_abort_inside_shared_content_leaves_nothing_wrong() -> None:
    one = bench(max_num_batched_tokens=6, max_num_seqs=4)
    aborted = one.add([*DECLARED, 20, 21, 22, 23], root=b"a")
    one.step()
    one.scheduler.abort(aborted.id)
    one.scheduler.check_integrity()
    requests = []
    for root in (b"b", b"a", b"b"):
        requests.append(one.add([*DECLARED, 20, 21, 22, 23], root=root))
        one.run()
        assert requests[-1].token_ids == expected(requests[-1])
    assert [request.num_cached_tokens for request in requests] == [4, 8, 13]


def test_what_follows_shared_blocks_is_not_found_in_another_place() -> None:
    one = bench()
    alice = one.add([*DECLARED, 20, 21], root=b"a")
    one.run()
    own = alice.token_ids[8:12]
    assert one.scheduler.pool.match(alice.root, alice.chain.hashes, alice.token_ids).num_tail_tokens > 0
    assert one.scheduler.pool.match(alice.root, [], own).tail is None


def test_two_chains_are_stored_each_under_its_root() -> None:
    one = bench()
    alice = one.add([*DECLARED, 20, 21, 22, 23], root=b"a", owner="alice", max_tokens=0)
    outputs = []
    while one.scheduler.has_work:
        schedule = one.scheduler.schedule()
        outputs += one.scheduler.commit(schedule, one.runner.execute(schedule))
    first, second = tuple(alice.chain.hashes[:2]), tuple(alice.chain.hashes[2:])
    assert outputs[-1].stored == (Stored(BlockHash(b"S" * 16), first, None), Stored(alice.root, second, "alice"))
    pool = one.scheduler.pool
    chains = [pool.chain_to(leaf) for leaf in pool.leaves()]
    assert sorted(chain for chain in chains if chain) == sorted(
        [(BlockHash(b"S" * 16), list(first)), (alice.root, list(second))]
    )


def test_holdings_say_how_much_of_a_path_was_declared() -> None:
    one = bench()
    alice = one.add([*DECLARED, 20, 21, 22, 23], root=b"a", owner="alice", max_tokens=1)
    one.add([*DECLARED, 20, 21, 22, 23], root=b"b", owner="bob", max_tokens=1)
    one.run()
    pool = one.scheduler.pool
    assert pool.census.roots_of("alice") == [alice.root]
    (holding,) = pool.census.holdings([alice.root], 1.0)
    assert (holding.num_tokens, holding.num_declared_tokens, holding.num_shared_tokens) == (14, 8, 8)
    assert pool.census.num_tokens([alice.root]) == 6
