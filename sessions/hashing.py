"""Block hashes: the identity of cached KV, version `hash/1`. Pure. Vectors: `tests/vectors/hash-1.json`.

    tenant key  blake2b-256(key = server secret, person "anaphora/tenant1", text(tenant id) ‖ optional(salt))
    root        blake2b-128(key = tenant key, person "anaphora/root/1", fields of RootFields)
    h[0]        blake2b-128(root   ‖ token ids of block 0, little-endian u32)
    h[i]        blake2b-128(h[i-1] ‖ token ids of block i, little-endian u32)

A prompt that begins with blocks that the operator declared shared (`SharedContent`) is two chains, each with a root of
its own: the shared one, whose root no tenant is in, and the tenant's, whose root binds where it leaves the other.

    shared root blake2b-128(key = shared key, person "anaphora/root/1", fields of RootFields)
    shared key  blake2b-256(key = server secret, person "anaphora/shared1")
    branch      blake2b-128(root ‖ last shared block hash, person "anaphora/branch1"): the root of the second chain

Only the root is keyed: without it nobody can compute a hash, or test a guess against one seen in Redis, so a
key per block would buy nothing. Every variable-length value carries its length, so no two inputs share an
encoding. Whatever changes a bit of this is a new version and a release note: every tier, and every replica,
must agree on it.
"""

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import pairwise
from typing import Final, NamedTuple

from sessions.interned import interned
from sessions.types import BlockHash

VERSION: Final = "hash/1"
DIGEST_BYTES: Final = 16
TOKEN_BYTES: Final = 4
MIN_SECRET_BYTES: Final = 16

_TENANT_PERSON: Final = b"anaphora/tenant1"
_SHARED_PERSON: Final = b"anaphora/shared1"
_BRANCH_PERSON: Final = b"anaphora/branch1"
_ROOT_PERSON: Final = b"anaphora/root/1"
_FINGERPRINT_PERSON: Final = b"anaphora/finger1"
_MAX_KEY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class RootFields:
    """Everything but the tokens that decides the bits of a block's KV. Sampling parameters do not.

    The declaration order is the encoding order: append only, and only together with a new VERSION.

    weights: fingerprint of the weight files. model_config: digest of what shapes the forward pass (layers,
    heads, rope and its scaling, sliding window). numerics: what else must be equal for the bits to be equal,
    e.g. "cpu/sdpa". adapters: digests, in the order they are stacked. tokenizer, template: for diagnosis; KV
    depends on ids alone.
    """

    block_size: int
    weights: str
    model_config: str
    weight_quantisation: str
    compute_dtype: str
    kv_dtype: str
    numerics: str
    tokenizer: str
    template: str
    adapters: tuple[str, ...] = ()


def tenant_key(server_secret: bytes, tenant_id: str, cache_salt: str | None) -> bytes:
    """32 bytes that only this server can derive. A salt gives another key, so it can only narrow what is
    shared.

    Raises ValueError for a secret shorter than MIN_SECRET_BYTES.
    """
    salt = b"\x00" if cache_salt is None else b"\x01" + _text(cache_salt)
    return blake2b(
        _text(tenant_id) + salt, key=_secret_key(server_secret), person=_TENANT_PERSON, digest_size=32
    ).digest()


def shared_key(server_secret: bytes) -> bytes:
    """What `tenant_key` is for a tenant, for content that the operator declared shared. Raises as that does."""
    return blake2b(key=_secret_key(server_secret), person=_SHARED_PERSON, digest_size=32).digest()


def _secret_key(server_secret: bytes) -> bytes:
    if len(server_secret) < MIN_SECRET_BYTES:
        raise ValueError(f"the server secret must have at least {MIN_SECRET_BYTES} bytes, not {len(server_secret)}")
    return server_secret if len(server_secret) <= _MAX_KEY_BYTES else blake2b(server_secret).digest()


def root_hash(root_fields: RootFields, key: bytes) -> BlockHash:
    """The parent hash of every first block computed under `root_fields` for the holder of `key`."""
    data = encode_fields(root_fields)
    return BlockHash(blake2b(data, key=key, person=_ROOT_PERSON, digest_size=DIGEST_BYTES).digest())


def system_fingerprint(root_fields: RootFields) -> str:
    """For clients: equal for equal weights, arithmetic, tokenizer and template. Says nothing else of them."""
    digest = blake2b(encode_fields(root_fields), person=_FINGERPRINT_PERSON, digest_size=6)
    return "fp_" + digest.hexdigest()


def branch_root(root: BlockHash, last_shared: BlockHash) -> BlockHash:
    """What hangs under `root` after the shared block `last_shared`. Without `root` nobody can compute it."""
    return BlockHash(blake2b(root + last_shared, person=_BRANCH_PERSON, digest_size=DIGEST_BYTES).digest())


def encode_fields(root_fields: RootFields) -> bytes:
    """VERSION, then each field as text(name) ‖ u32 byte length ‖ value; see `_value`."""
    encoded = [_text(VERSION)]
    for field in fields(root_fields):
        value = _value(getattr(root_fields, field.name))
        encoded.append(_text(field.name) + _length(value) + value)
    return b"".join(encoded)


def extend_tokens(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """The hash of these ids, all of them, after `parent`: a block, or a part that stands for itself."""
    return BlockHash(blake2b(parent + token_bytes(token_ids), digest_size=DIGEST_BYTES).digest())


def chain_hashes(parent: BlockHash, token_ids: Sequence[int], block_size: int) -> list[BlockHash]:
    """Hashes of the whole blocks of `token_ids` after `parent`; ids beyond the last whole block are left out.

    Raises OverflowError for an id outside u32.
    """
    tokens = token_bytes(token_ids)
    block_bytes = block_size * TOKEN_BYTES
    begun = blake2b(digest_size=DIGEST_BYTES).copy  # a quarter cheaper than to set up each hash anew
    hashes = []
    for end in range(block_bytes, len(tokens) + 1, block_bytes):
        block = begun()
        block.update(parent)
        block.update(tokens[end - block_bytes : end])
        parent = BlockHash(block.digest())
        hashes.append(parent)
    return hashes


def runs_of(token_ids: Sequence[int], block_size: int) -> list[tuple[int, ...]]:
    """The ids of each whole block; those beyond the last one are left out."""
    if len(token_ids) < block_size:
        return []
    return list(zip(*[interned(token_ids)] * block_size, strict=False))  # one iterator: each run takes the next ids


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """Ids as little-endian u32 on every machine. Raises OverflowError for one outside u32."""
    words = array("I", token_ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


@dataclass(frozen=True, slots=True)
class SharedContent:
    """What an operator declared shared. root: of its blocks. parents: of every block that lies wholly inside it."""

    root: BlockHash
    parents: Mapping[BlockHash, BlockHash]

    @classmethod
    def of(cls, root: BlockHash, chains: Iterable[Sequence[BlockHash]]) -> "SharedContent":
        """chains: of each declared prompt, from its first block on."""
        return cls(root, {after: before for chain in chains for before, after in pairwise((root, *chain))})

    def below(self, block_hash: BlockHash) -> list[BlockHash]:
        """The declared blocks that follow this one, near or far. O(declared blocks)."""
        children: dict[BlockHash, list[BlockHash]] = {}
        for after, before in self.parents.items():
            children.setdefault(before, []).append(after)
        found = list(children.get(block_hash, ()))
        for after in found:  # grows while it is read
            found += children.get(after, ())
        return found


class Stretch(NamedTuple):
    """Blocks [start, end) of a prompt: a chain of its own under `root`."""

    root: BlockHash
    start: int
    end: int


class HashChain:
    """The hashes of one growing token sequence. Extending it hashes new tokens only, whatever came before.

    block_size 4, after extend([a b c d e f]) and extend([g h i]):
    tokens   a b c d │ e f g h │ i
    hashes   h0        h1        (i waits in the tail)

    With `shared`, as many leading blocks as were declared hang from its root, the others from `branch`:
    root     shared.root          branch = branch_root(root, h1)
    hashes   h0   h1         │    h2   h3
    """

    __slots__ = ("_shared", "_tail", "block_size", "branch", "hashes", "num_shared_blocks", "root", "runs")

    def __init__(self, root: BlockHash, block_size: int, shared: SharedContent | None = None) -> None:
        self.root = root
        self.branch = root
        """What the blocks after the shared ones hang from; `root` where there are none."""
        self.block_size = block_size
        self.hashes: list[BlockHash] = []
        """One per whole block, in order. Read only for everybody else."""
        self.runs: list[tuple[int, ...]] = []
        """The ids of each of these blocks. Forks have the same tuples, so that comparing them compares addresses."""
        self.num_shared_blocks = 0
        self._shared = shared
        self._tail = array("I")

    def fork(self) -> "HashChain":
        """A chain that goes its own way from here; nothing is hashed again."""
        fork = HashChain(self.root, self.block_size, self._shared)
        fork.hashes, fork.runs, fork._tail = self.hashes.copy(), self.runs.copy(), self._tail[:]
        fork.branch, fork.num_shared_blocks = self.branch, self.num_shared_blocks
        return fork

    @property
    def num_tokens(self) -> int:
        return len(self.hashes) * self.block_size + len(self._tail)

    @property
    def parent(self) -> BlockHash:
        """What the tail hangs from: nobody else's, even where the last whole block is shared."""
        return self.hashes[-1] if len(self.hashes) > self.num_shared_blocks else self.branch

    def root_of(self, index: int) -> BlockHash:
        """The root of the block at `index`."""
        return self._shared_root if index < self.num_shared_blocks else self.branch

    def branch_at(self, index: int) -> BlockHash:
        """The root of what is its own after the first `index` blocks: of a tail that ends inside shared content too."""
        if index >= self.num_shared_blocks:
            return self.branch
        return branch_root(self.root, self.hashes[index - 1]) if index else self.root

    def branches_after(self) -> list[BlockHash]:
        """The roots of all that is its own after the last block; one, but where that lies inside shared content."""
        if self._shared is None or not self.hashes or len(self.hashes) > self.num_shared_blocks:
            return [self.branch]
        return [self.branch, *(branch_root(self.root, later) for later in self._shared.below(self.hashes[-1]))]

    def stretches(self, num_blocks: int | None = None) -> list[Stretch]:
        """The first `num_blocks` blocks (all of them) as chains of one root each; none is empty."""
        end = len(self.hashes) if num_blocks is None else num_blocks
        middle = min(self.num_shared_blocks, end)
        found = [Stretch(self._shared_root, 0, middle)] if middle else []
        return [*found, Stretch(self.branch, middle, end)] if middle < end else found

    def extend(self, token_ids: Sequence[int]) -> None:
        """Raises OverflowError for an id outside u32, and then leaves the chain as it was."""
        pending = array("I", self._tail)
        pending.extend(token_ids)
        shared = self._leading_shared(pending)
        rest = pending[len(shared) * self.block_size :] if shared else pending
        branch = branch_root(self.root, shared[-1]) if shared else self.branch
        parent = branch if shared else self.parent
        private = chain_hashes(parent, rest, self.block_size)
        self.branch = branch
        self.num_shared_blocks += len(shared)
        self.hashes += shared
        self.hashes += private
        self.runs += runs_of(pending, self.block_size)
        self._tail = rest[len(rest) - len(rest) % self.block_size :]

    @property
    def _shared_root(self) -> BlockHash:
        assert self._shared is not None
        return self._shared.root

    def _leading_shared(self, pending: Sequence[int]) -> list[BlockHash]:
        """Hashes of the leading blocks of `pending` that go on with what was declared. Changes nothing."""
        found: list[BlockHash] = []
        if self._shared is None or len(self.hashes) > self.num_shared_blocks:
            return found
        parent = self.hashes[-1] if self.hashes else self._shared.root
        for start in range(0, len(pending) - self.block_size + 1, self.block_size):
            parent = extend_tokens(parent, pending[start : start + self.block_size])
            if parent not in self._shared.parents:
                break
            found.append(parent)
        return found


def _value(value: object) -> bytes:
    """int: i64. str: text. tuple of str: u32 count, then each as text. Type by field, so no tag is needed."""
    if isinstance(value, int):
        return value.to_bytes(8, "little", signed=True)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        return _length(value) + b"".join(_text(part) for part in value)
    raise TypeError(f"a root field cannot be a {type(value).__name__}")


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return _length(data) + data


def _length(value: Sequence[object] | bytes) -> bytes:
    return len(value).to_bytes(4, "little")
