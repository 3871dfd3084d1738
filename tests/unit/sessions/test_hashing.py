"""hash/1: the vectors in the repo, no collision between fields, incremental equals at once."""

import json
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sessions.hashing import (
    HashChain,
    RootFields,
    SharedContent,
    Stretch,
    branch_root,
    chain_hashes,
    encode_fields,
    extend_tokens,
    root_hash,
    runs_of,
    shared_key,
    tenant_key,
)
from sessions.types import BlockHash

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "hash-1.json").read_text("utf-8"))
SECRET = b"0123456789abcdef0123456789abcdef"
FIELDS = RootFields(16, "weights", "config", "none", "float32", "float16", "cpu", "tokenizer", "template")
ROOT = root_hash(FIELDS, tenant_key(SECRET, "default", None))

token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=70)
names = st.text(max_size=6)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    fields = RootFields(**{**vector["fields"], "adapters": tuple(vector["fields"]["adapters"])})
    key = tenant_key(bytes.fromhex(vector["server_secret"]), vector["tenant_id"], vector["cache_salt"])
    root = root_hash(fields, key)
    assert encode_fields(fields).hex() == vector["encoded_fields"]
    assert key.hex() == vector["tenant_key"]
    assert root.hex() == vector["root"]
    hashes = chain_hashes(root, vector["token_ids"], fields.block_size)
    assert [block_hash.hex() for block_hash in hashes] == vector["hashes"]


@pytest.mark.parametrize("vector", VECTORS["shared_vectors"], ids=lambda vector: vector["name"])
def test_shared_vector(vector: dict[str, Any]) -> None:
    fields = RootFields(**{**vector["fields"], "adapters": tuple(vector["fields"]["adapters"])})
    secret, size = bytes.fromhex(vector["server_secret"]), fields.block_size
    shared_root = root_hash(fields, shared_key(secret))
    assert (shared_key(secret).hex(), shared_root.hex()) == (vector["shared_key"], vector["shared_root"])
    shared = SharedContent.of(shared_root, [chain_hashes(shared_root, vector["declared_token_ids"], size)])
    chain = HashChain(root_hash(fields, tenant_key(secret, vector["tenant_id"], None)), size, shared)
    chain.extend(vector["token_ids"])
    assert chain.branch.hex() == vector["branch"]
    assert [block_hash.hex() for block_hash in chain.hashes] == vector["hashes"]


def test_definition_spelt_out() -> None:
    (block_hash,) = chain_hashes(ROOT, [1, 2, 2**32 - 1], 3)
    expected = blake2b(ROOT + bytes.fromhex("0100000002000000ffffffff"), digest_size=16).digest()
    assert block_hash == expected == extend_tokens(ROOT, [1, 2, 2**32 - 1])


@given(names, st.none() | names, names, st.none() | names)
def test_tenants_and_salts_never_share_a_key(
    tenant: str, salt: str | None, other_tenant: str, other_salt: str | None
) -> None:
    assume((tenant, salt) != (other_tenant, other_salt))
    assert tenant_key(SECRET, tenant, salt) != tenant_key(SECRET, other_tenant, other_salt)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", None), ("a", "")),
        (("a\0", None), ("a", "\0")),
        (("", "a"), ("a", "")),
    ],
)
def test_lengths_separate_fields(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    assert tenant_key(SECRET, *one) != tenant_key(SECRET, *other)


@pytest.mark.parametrize("field", RootFields.__dataclass_fields__)
def test_every_field_changes_the_root(field: str) -> None:
    value = getattr(FIELDS, field)
    changed = value + 1 if isinstance(value, int) else (*value, "x") if isinstance(value, tuple) else value + "x"
    assert root_hash(replace(FIELDS, **{field: changed}), b"key") != root_hash(FIELDS, b"key")


@given(st.lists(names, max_size=3).map(tuple), st.lists(names, max_size=3).map(tuple))
def test_adapter_stacks_have_one_encoding(adapters: tuple[str, ...], others: tuple[str, ...]) -> None:
    encodings = [encode_fields(replace(FIELDS, adapters=stack)) for stack in (adapters, others)]
    assert (encodings[0] == encodings[1]) == (adapters == others)


def test_secret_decides_and_must_be_long_enough() -> None:
    assert tenant_key(SECRET, "a", None) != tenant_key(SECRET[::-1], "a", None)
    assert tenant_key(b"x" * 65, "a", None) != tenant_key(b"x" * 66, "a", None)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        tenant_key(b"short", "a", None)


@given(token_ids, st.integers(1, 20))
def test_chain_covers_whole_blocks_and_is_prefix_stable(ids: list[int], block_size: int) -> None:
    hashes = chain_hashes(ROOT, ids, block_size)
    assert len(hashes) == len(ids) // block_size
    assert chain_hashes(ROOT, ids[: len(ids) // 2], block_size) == hashes[: len(ids) // 2 // block_size]
    assert len(set(hashes)) == len(hashes)


@given(token_ids, token_ids)
def test_different_tokens_have_different_last_hashes(ids: list[int], others: list[int]) -> None:
    same_length = min(len(ids), len(others))
    assume(ids[:same_length] != others[:same_length])
    assert chain_hashes(ROOT, ids[:same_length], 1)[-1] != chain_hashes(ROOT, others[:same_length], 1)[-1]


@given(token_ids, st.lists(st.integers(0, 70)), st.integers(1, 20))
def test_incremental_equals_at_once(ids: list[int], cuts: list[int], block_size: int) -> None:
    chain = HashChain(ROOT, block_size)
    for start, end in pairwise([0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]):
        chain.extend(ids[start:end])
        assert chain.num_tokens == end
    assert chain.hashes == chain_hashes(ROOT, ids, block_size)
    assert chain.runs == runs_of(ids, block_size)


@pytest.mark.parametrize("bad_id", [-1, 2**32])
def test_bad_id_leaves_the_chain_as_it_was(bad_id: int) -> None:
    chain = HashChain(BlockHash(ROOT), 2)
    chain.extend([1, 2, 3])
    with pytest.raises(OverflowError):
        chain.extend([4, bad_id])
    assert (chain.num_tokens, len(chain.hashes), chain.runs) == (3, 1, [(1, 2)])
    chain.extend([4])
    assert chain.hashes == chain_hashes(ROOT, [1, 2, 3, 4], 2)


@given(token_ids, token_ids, token_ids, st.integers(1, 20))
def test_a_fork_goes_its_own_way(ids: list[int], mine: list[int], theirs: list[int], block_size: int) -> None:
    chain = HashChain(ROOT, block_size)
    chain.extend(ids)
    fork = chain.fork()
    assert all(ours is its for ours, its in zip(chain.runs, fork.runs, strict=True))
    chain.extend(mine)
    fork.extend(theirs)
    for one, more in ((chain, mine), (fork, theirs)):
        assert one.hashes == chain_hashes(ROOT, [*ids, *more], block_size)
        assert one.runs == runs_of([*ids, *more], block_size)


# -- content that the operator declared shared --

SHARED_ROOT = root_hash(FIELDS, shared_key(SECRET))
few_ids = st.lists(st.integers(0, 1), max_size=24)


def declared(prompts: list[list[int]], block_size: int) -> SharedContent:
    return SharedContent.of(SHARED_ROOT, [chain_hashes(SHARED_ROOT, ids, block_size) for ids in prompts])


def num_common(ids: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))


@given(few_ids, st.lists(few_ids, max_size=3), st.lists(st.integers(0, 24)), st.integers(1, 5))
def test_whole_declared_blocks_are_everybody_s_and_the_rest_is_its_root_s_own(
    ids: list[int], prompts: list[list[int]], cuts: list[int], block_size: int
) -> None:
    chain = HashChain(ROOT, block_size, declared(prompts, block_size))
    for start, end in pairwise([0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]):
        chain = chain.fork()
        chain.extend(ids[start:end])
    assert chain.runs == runs_of(ids, block_size)
    num_shared = max([num_common(ids, prompt) // block_size for prompt in prompts], default=0)
    assert chain.num_shared_blocks == num_shared
    assert chain.hashes[:num_shared] == chain_hashes(SHARED_ROOT, ids, block_size)[:num_shared]
    branch = branch_root(ROOT, chain.hashes[num_shared - 1]) if num_shared else ROOT
    assert chain.branch == branch
    assert chain.hashes[num_shared:] == chain_hashes(branch, ids[num_shared * block_size :], block_size)
    assert [(root, index) for root, start, end in chain.stretches() for index in range(start, end)] == [
        (chain.root_of(index), index) for index in range(len(chain.hashes))
    ]


def test_nothing_but_shared_blocks_is_common_to_two_tenants() -> None:
    shared = declared([list(range(9))], 4)
    chains = [HashChain(root_hash(FIELDS, tenant_key(SECRET, name, None)), 4, shared) for name in ("a", "b")]
    for chain in chains:
        chain.extend([*range(9), 1, 2, 3, 4])
    alice, bob = chains
    assert set(alice.hashes) & set(bob.hashes) == set(alice.hashes[:2])
    assert alice.branch != bob.branch and alice.parent != bob.parent
    assert alice.stretches(1) == [Stretch(SHARED_ROOT, 0, 1)] and alice.stretches(0) == []


def test_the_tail_of_a_chain_that_is_all_shared_hangs_from_its_own_root() -> None:
    shared = declared([list(range(8))], 4)
    chain = HashChain(ROOT, 4, shared)
    chain.extend([*range(8), 1])
    assert chain.num_shared_blocks == len(chain.hashes) == 2
    assert chain.parent == chain.branch == branch_root(ROOT, chain.hashes[1])


def test_a_bad_id_leaves_a_shared_chain_as_it_was() -> None:
    chain = HashChain(ROOT, 2, declared([[1, 2, 3, 4]], 2))
    for bad in ([1, -1], [1, 2, 3, -1], [1, 2, 9, 9, -1]):
        with pytest.raises(OverflowError):
            chain.extend(bad)
        assert (chain.num_tokens, chain.num_shared_blocks, chain.branch) == (0, 0, ROOT)


def test_no_tenant_is_called_so_that_its_root_is_the_shared_one() -> None:
    assert shared_key(SECRET) not in {tenant_key(SECRET, name, salt) for name in ("", "shared") for salt in (None, "")}
    with pytest.raises(ValueError, match="at least 16 bytes"):
        shared_key(b"short")
