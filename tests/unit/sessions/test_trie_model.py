"""Ledgers and the trie in lockstep with sets: Redis ends up saying what replicas publish and evict."""

import hashlib
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sessions import trie as trie_module
from sessions.embedded_redis import EmbeddedRedis, find_server
from sessions.index.ledger import Ledger
from sessions.trie import PrefixTrie, namespace_of
from sessions.types import BlockHash

ROOT = BlockHash(b"r" * 16)
NAMESPACE = namespace_of(ROOT)
NUM_REPLICAS = 2
PATHS = st.text("ab", min_size=1, max_size=4)
"""Short and few, so that branches, overlaps and returns to an evicted path are the rule."""
EVERY_PATH = ["".join(letters) for letters in itertools.product("ab", repeat=4)]
REPLICAS = st.integers(0, NUM_REPLICAS - 1)


def block_hash(path: str) -> BlockHash:
    """A chained hash: it binds the whole path."""
    return BlockHash(hashlib.blake2b(path.encode(), digest_size=16, key=ROOT).digest())


def chain(path: str) -> list[BlockHash]:
    return [block_hash(path[: i + 1]) for i in range(len(path))]


class Model(RuleBasedStateMachine):
    """`held[replica]`: the paths whose last block the replica's pool holds; prefix-closed, as the pool is."""

    client: ClassVar[redis.Redis]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.trie = PrefixTrie(self.client)
        self.held: list[set[str]] = [set() for _ in range(NUM_REPLICAS)]
        self.ledgers = [Ledger(max_chains=100, max_evictions=100) for _ in range(NUM_REPLICAS)]

    @rule(replica=REPLICAS, path=PATHS)
    def publish(self, replica: int, path: str) -> None:
        self.held[replica] |= {path[: i + 1] for i in range(len(path))}
        self.ledgers[replica].publish(ROOT, chain(path))

    @rule(replica=REPLICAS, data=st.data())
    def evict_leaves(self, replica: int, data: st.DataObject) -> None:
        for _ in range(data.draw(st.sampled_from([1, 2, 4, 30]))):
            held = self.held[replica]
            leaves = sorted(path for path in held if path + "a" not in held and path + "b" not in held)
            if not leaves:
                return
            leaf = data.draw(st.sampled_from(leaves))
            held.discard(leaf)
            self.ledgers[replica].evicted([block_hash(leaf)], now=0.0)

    @rule(replica=REPLICAS)
    def empty_the_pool(self, replica: int) -> None:
        self.held[replica].clear()
        self.ledgers[replica].clear()

    @rule()
    def redis_loses_everything(self) -> None:
        self.client.flushall()
        for ledger in self.ledgers:
            ledger.lost_claims()

    @rule(replica=REPLICAS)
    def tell_claims_only(self, replica: int) -> None:
        """Cuts may be late by any time."""
        ledger = self.ledgers[replica]
        while told := ledger.next_chain():
            self.trie.insert(NAMESPACE, told.blocks, told.incarnation, ttl_s=600)

    @rule()
    def tell_everything_and_compare(self) -> None:
        for replica in range(NUM_REPLICAS):
            self._tell(replica)
        for path in EVERY_PATH:
            match = self.trie.lookup(NAMESPACE, chain(path))
            claimed = [match.holders.get(ledger.incarnation, (0, 0))[0] for ledger in self.ledgers]
            actual = [max(i for i in range(5) if not i or path[:i] in held) for held in self.held]
            assert claimed == actual
            assert match.num_blocks >= max(actual)

    @invariant()
    def nothing_lives_for_ever(self) -> None:
        assert all(self.client.ttl(key) > 0 for key in self.client.scan_iter())

    def _tell(self, replica: int) -> None:
        ledger, held = self.ledgers[replica], self.held[replica]
        if incarnation := ledger.begin_resync():
            leaves = [path for path in held if path + "a" not in held and path + "b" not in held]
            ledger.learn(incarnation, [(ROOT, tuple(chain(path))) for path in sorted(leaves)])
        self.tell_claims_only(replica)
        while cut := ledger.next_cut(now=1.0, delay_s=0.0):
            self.trie.cut(NAMESPACE, cut.blocks, cut.start, cut.incarnation)


@pytest.mark.parametrize("max_run_blocks", [3, 256])
def test_redis_says_what_the_pools_hold(max_run_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_module, "MAX_RUN_BLOCKS", max_run_blocks)
    binary = find_server()
    assert binary is not None
    folder = Path(tempfile.mkdtemp())
    server = EmbeddedRedis(binary, folder / "redis")
    server.start()
    assert server.wait_ready(5)
    try:
        with redis.Redis.from_url(server.url) as Model.client:
            case = Model.TestCase
            case.settings = settings(
                max_examples=150,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            case("runTest").runTest()
    finally:
        server.stop(5)
        shutil.rmtree(folder)
