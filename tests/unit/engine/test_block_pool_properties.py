"""The block pool at random: every invariant after every operation, and the order of eviction beside a plain model."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sessions.engine.block import Block
from sessions.engine.block_pool import BlockPool
from sessions.engine.pins import PinLimitExceeded
from sessions.engine.retention import HASTE, KEPT, TTL_S
from sessions.hashing import HashChain
from sessions.types import BlockHash
from tests.unit.engine.pools import hashes_of, matched, store

NUM_BLOCKS = 14
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9)
ROOTS = st.sampled_from([BlockHash(name * 16) for name in (b"a", b"b", b"c")])
LEVELS = st.integers(0, len(TTL_S) - 1)


def owner_of(root: BlockHash) -> str:
    return root[:1].decode()


def turn_of(block: Block, now: float) -> tuple[float, ...]:
    """What `retention.py` says in words, without queues: the leaf with the least of these goes first."""
    age = now - block.last_used_at
    if age > TTL_S[block.level]:
        return (0, block.level, block.last_used_at)
    if block.level < KEPT:
        return (1, -age * HASTE[block.level], block.level)
    return (2, block.level, block.last_used_at)


class Life(RuleBasedStateMachine):
    """Whatever may happen to a pool, in any order, at any pace."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 2)
        self.held: list[list[Block]] = []
        self.now = 0.0

    @rule(seconds=st.sampled_from([0.5, 100.0, 601.0, 2000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(tokens=TOKENS, root=ROOTS, level=LEVELS)
    def begin(self, tokens: list[int], root: BlockHash, level: int) -> None:
        hashes = hashes_of(self.pool, tokens, root)
        match = self.pool.match(root, hashes, tokens)
        spare = self.pool.num_free_blocks - sum(block.is_idle for block in match.blocks)
        if -(-len(tokens) // 2) - len(match.blocks) > spare:
            return
        self.pool.touch(match.blocks)
        self.pool.reuse(match, hashes)
        path = store(self.pool, tokens, root, now=self.now, owner=owner_of(root))
        self.pool.retain(path, len(tokens) - 1, level)
        self.pool.free(match.blocks, self.now)
        self.held.append(path)
        assert matched(self.pool, tokens, root) == len(tokens)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.pool.free(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))), self.now)

    @rule(root=ROOTS, tokens=TOKENS)
    def pin(self, root: BlockHash, tokens: list[int]) -> None:
        before = self.pool.num_pinned_blocks
        try:
            num_blocks = self.pool.pin(root, hashes_of(self.pool, tokens, root))
        except PinLimitExceeded:
            assert self.pool.num_pinned_blocks == before
        else:
            assert num_blocks == len(self.pool.match(root, hashes_of(self.pool, tokens, root), tokens).blocks)

    @rule(root=ROOTS, tokens=TOKENS)
    def unpin(self, root: BlockHash, tokens: list[int]) -> None:
        self.pool.unpin(root, hashes_of(self.pool, tokens, root), self.now)

    @rule(root=ROOTS, tokens=TOKENS, is_whole=st.booleans())
    def drop(self, root: BlockHash, tokens: list[int], is_whole: bool) -> None:
        hashes = hashes_of(self.pool, tokens, root)
        self.pool.drop(root, hashes[-1] if hashes and not is_whole else None, self.now)
        most = (len(hashes) - 1) * 2 + 1 if hashes and not is_whole else 0
        assert matched(self.pool, tokens, root) <= most

    @rule(root=ROOTS, num_blocks=st.integers(0, 6))
    def set_budget(self, root: BlockHash, num_blocks: int) -> None:
        self.pool.set_budget(owner_of(root), num_blocks)

    @rule(num_blocks=st.integers(1, 4))
    def take_room(self, num_blocks: int) -> None:
        if num_blocks <= self.pool.num_free_blocks:
            self.held.append(self.pool.allocate(num_blocks, self.now))

    @invariant()
    def everything_holds(self) -> None:
        self.pool.check_integrity()
        held = [block for path in self.held for block in path]
        assert all(block.ref_count == held.count(block) for block in self.pool.blocks)
        listed = self.pool.census.holdings([BlockHash(name * 16) for name in (b"a", b"b", b"c")], self.now)
        leaves = [block for block in self.pool.blocks if block.is_registered and not block.children]
        assert len(listed) == len(leaves)

    def teardown(self) -> None:
        for path in self.held:
            self.pool.free(path, self.now)
        assert self.pool.num_free_blocks == NUM_BLOCKS - self.pool.num_pinned_blocks
        self.pool.check_integrity()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_blocks_go_in_the_order_of_a_plain_model(data: st.DataObject) -> None:
    pool = BlockPool(20, 2)
    now = 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        tokens, root = data.draw(TOKENS), data.draw(ROOTS)
        path = store(pool, tokens, root, now=now)
        pool.retain(path, data.draw(st.integers(0, 9)), data.draw(LEVELS))
        pool.free(path, now)
        now += data.draw(st.sampled_from([0.0, 1.0, 300.0, 900.0]))
    empty = [block for block in pool.blocks if not block.is_registered]
    pool.allocate(len(empty), now)
    while pool.num_free_blocks:
        leaves = {block: turn_of(block, now) for block in pool.blocks if block.is_registered and not block.children}
        (taken,) = pool.allocate(1, now)
        assert taken in leaves, "not a leaf"
        assert leaves[taken] == min(leaves.values())
        now += data.draw(st.sampled_from([0.0, 50.0, 700.0]))
        pool.check_integrity()


@settings(max_examples=200, deadline=None)
@given(stored=st.lists(st.tuples(TOKENS, ROOTS), max_size=3), gone=st.integers(0, 6), tokens=TOKENS, root=ROOTS)
def test_a_prompt_s_chain_finds_what_its_tokens_do(
    stored: list[tuple[list[int], BlockHash]], gone: int, tokens: list[int], root: BlockHash
) -> None:
    """Whatever was stored, by it or by others, and evicted since."""
    pool = BlockPool(20, 2)
    for ids, under in stored:
        pool.free(store(pool, ids, under), 0.0)
    pool.allocate(min(pool.num_free_blocks, sum(not block.is_registered for block in pool.blocks) + gone), 1.0)
    chain = HashChain(root, 2)
    chain.extend(tokens[: len(tokens) // 2])
    chain = chain.fork()
    chain.extend(tokens[len(tokens) // 2 :])
    assert pool.match_prompt(chain, tokens) == pool.match(root, hashes_of(pool, tokens, root), tokens[:-1])
