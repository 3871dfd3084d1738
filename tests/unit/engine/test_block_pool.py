"""The block pool by numbers that can be counted on fingers: block size 4, then at random."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.engine.block import Block
from sessions.engine.block_pool import BlockPool
from sessions.hashing import chain_hashes
from sessions.types import BlockHash

ROOT = BlockHash(b"r" * 16)


def store(pool: BlockPool, tokens: list[int], root: BlockHash = ROOT) -> list[Block]:
    """Do what the scheduler does for one request that computes `tokens` and stays."""
    hashes = chain_hashes(root, tokens, pool.block_size)
    match = pool.match(root, hashes, tokens)
    pool.touch(match.blocks)
    table = [*match.blocks, *pool.allocate(-(-len(tokens) // pool.block_size) - len(match.blocks))]
    for index in range(len(match.blocks), len(tokens) // pool.block_size):
        run = tuple(tokens[index * pool.block_size : (index + 1) * pool.block_size])
        table[index] = pool.register_full(table[index], root, table[index - 1] if index else None, hashes[index], run)
    full = len(tokens) // pool.block_size
    if len(tokens) % pool.block_size:
        tail = tuple(tokens[full * pool.block_size :])
        pool.register_partial(table[full], root, table[full - 1] if full else None, tail)
    return table


def matched(pool: BlockPool, tokens: list[int], root: BlockHash = ROOT) -> int:
    match = pool.match(root, chain_hashes(root, tokens, pool.block_size), tokens)
    return len(match.blocks) * pool.block_size + match.num_tail_tokens


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
    assert matched(pool, [1, 2, 3, 4, 5], BlockHash(b"x" * 16)) == 0


def test_the_tail_is_evicted_before_the_head() -> None:
    pool = BlockPool(3, 4)
    table = store(pool, list(range(12)))
    pool.free(table)
    (taken,) = pool.allocate(1)
    assert taken is table[2]
    assert matched(pool, list(range(12))) == 8
    assert pool.take_removed() == [chain_hashes(ROOT, list(range(12)), 4)[2]]
    pool.check_integrity()


def test_equal_content_is_stored_once() -> None:
    pool = BlockPool(4, 4)
    first = store(pool, [1, 2, 3, 4])
    (twin,) = pool.allocate(1)
    kept = pool.register_full(twin, ROOT, None, chain_hashes(ROOT, [1, 2, 3, 4], 4)[0], (1, 2, 3, 4))
    assert kept is first[0] and kept.ref_count == 2 and twin.ref_count == 0
    pool.check_integrity()


def test_a_hash_collision_is_a_miss() -> None:
    pool = BlockPool(4, 4)
    store(pool, [1, 2, 3, 4])
    stolen = chain_hashes(ROOT, [1, 2, 3, 4], 4)
    assert pool.match(ROOT, stolen, [9, 9, 9, 9]).blocks == []
    (other,) = pool.allocate(1)
    assert pool.register_full(other, ROOT, None, stolen[0], (9, 9, 9, 9)) is other
    assert not other.is_registered
    pool.check_integrity()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_life_keeps_every_invariant(data: st.DataObject) -> None:
    pool = BlockPool(12, 2)
    held: list[list[Block]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        if held and data.draw(st.booleans()):
            pool.free(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            tokens = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=9))
            root = BlockHash(data.draw(st.sampled_from([b"a", b"b"])) * 16)
            if -(-len(tokens) // 2) <= pool.num_free_blocks - len(tokens):
                held.append(store(pool, tokens, root))
                assert matched(pool, tokens, root) == len(tokens)
        pool.check_integrity()
    for table in held:
        pool.free(table)
    assert pool.num_free_blocks == 12
    pool.check_integrity()
