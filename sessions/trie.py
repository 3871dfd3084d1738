"""PrefixTrie: the Redis index of who holds which prefix. One round trip per call; redis-py's errors pass.

Owns the key schema, the Lua scripts (`sessions/lua/`) and the wire form of their arguments and replies; holds
no state beside the client. Redis is a hint. The trie holds no tokens, tenants or block ids, only hashes and
"incarnation X holds the first k blocks of this run"; the ids of replies stand beside it under keyed hashes, if they
are kept there at all. `docs/redis-trie.md` draws the record and works an example.

    kv:{<namespace>}:n:<block hash>   STRING  a run of blocks and its holders; expires
    kv:{<namespace>}:r:<turn key>     STRING  the ids of one reply (`sessions/replies.py`); expires
    kv:{<namespace>}:rs               ZSET    turn key -> end of its record; expires with the last of them
    kv:{<namespace>}:salts            ZSET    of a tenant's own root: namespaces of its salted ones that have records
    kv:{<fleet>}:live                 ZSET    incarnation -> end of its lease
    kv:{<fleet>}:rep                  HASH    incarnation -> msgpack record of the replica
    kv:{<fleet>}:gen                  STRING  nonce of this data set; a new one means that data was lost

The braces make each namespace one cluster slot; a script touches the slot of its one declared key only.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple, NewType

import msgpack
import redis
from redis.exceptions import InvalidResponse, RedisError
from redis.typing import EncodableT

from sessions.types import BlockHash

Namespace = NewType("Namespace", str)
Incarnation = NewType("Incarnation", bytes)
"""8 random bytes: the life of one pool. A pool that was emptied gets another, so it cannot inherit claims."""

MAX_RUN_BLOCKS = 256
KV_POOL_TIER = 0
FORGET_AT_ONCE = 256
_FORMAT = b"kvtrie1"
_REFUSALS = ("OOM ", "READONLY ", "MISCONF ", "NOREPLICAS ", "used memory >", "read only replica")
"""Error codes, and what redis-py leaves of them when it has given the error a class of its own."""


class Claim(NamedTuple):
    """A holder has the first `num_blocks` blocks of a chain, the deepest of them in `tier` (0 = KV pool)."""

    num_blocks: int
    tier: int


class Match(NamedTuple):
    """The trie knows the first `num_blocks` of a chain; each holder has so much of it, from the root."""

    num_blocks: int
    holders: dict[Incarnation, Claim]


class Beat(NamedTuple):
    """Answer to a beat.

    generation: None = unknown. joined: the lease is new or had lapsed, so claims may have been forgotten.
    writable: False while the server answers but refuses writes. live: this incarnation is among them.
    """

    generation: bytes | None
    joined: bool
    writable: bool
    live: frozenset[Incarnation]


class Replica(NamedTuple):
    """What a replica tells the fleet of itself. For people and routers; nothing is decided by it."""

    name: str = ""
    url: str = ""
    pool_blocks: int = 0
    version: str = ""


def namespace_of(root: bytes) -> Namespace:
    """The namespace of a root hash, or of a fleet's fingerprint: base32(blake2b-80), which does not give it
    away.

    The record format is part of it: programs that write another format do not meet.
    """
    digest = hashlib.blake2b(root, digest_size=10, person=_FORMAT).digest()
    return Namespace(base64.b32encode(digest).decode().lower())


def new_incarnation() -> Incarnation:
    return Incarnation(os.urandom(8))


def refuses_writes(error: Exception) -> bool:
    """Whether a living server refused to write: no memory, a read-only replica, a failed snapshot."""
    return isinstance(error, RedisError) and any(refusal in str(error) for refusal in _REFUSALS)


class PrefixTrie:
    """The scripts over one client. As thread-safe as the client (redis-py's are).

    Every method raises `redis.exceptions.RedisError`: `InvalidResponse` for a reply that makes no sense.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        record = _source("record")
        self._lookup = client.register_script(record + _source("lookup"))
        self._insert = client.register_script(record + _source("insert"))
        self._cut = client.register_script(record + _source("cut"))
        self._beat = client.register_script(_source("beat"))
        self._keep = client.register_script(_source("keep"))
        self._forget = client.register_script(_source("forget"))

    def lookup(self, namespace: Namespace, chain: Sequence[BlockHash], *, ttl_s: int = 0) -> Match:
        """What is known of `chain`. `ttl_s` > 0 also renews the life of every run on the way (a write)."""
        match self._lookup(keys=[_runs(namespace)], args=[ttl_s, _joined(chain)]):
            case [int(num_blocks), *flat] if len(flat) % 3 == 0:
                claims = zip(flat[0::3], map(int, flat[1::3]), map(int, flat[2::3]), strict=True)
                return Match(num_blocks, {_incarnation(who): Claim(depth, tier) for who, depth, tier in claims})
            case other:
                raise _nonsense("lookup", other)

    def insert(
        self,
        namespace: Namespace,
        chain: Sequence[BlockHash],
        incarnation: Incarnation,
        *,
        ttl_s: int,
        tier: int = KV_POOL_TIER,
    ) -> int:
        """`incarnation` holds all of `chain`. Returns how many blocks the trie had not known."""
        args: list[EncodableT] = [incarnation, tier, ttl_s, MAX_RUN_BLOCKS, _joined(chain)]
        return _count("insert", self._insert(keys=[_runs(namespace)], args=args))

    def cut(self, namespace: Namespace, chain: Sequence[BlockHash], start: int, incarnation: Incarnation) -> int:
        """`incarnation` holds nothing of `chain` from block `start` on. Returns how many runs changed.

        Exact when branches are cut before the blocks they hang from (`sessions/lua/cut.lua`).
        """
        args: list[EncodableT] = [incarnation, start, _joined(chain)]
        return _count("cut", self._cut(keys=[_runs(namespace)], args=args))

    def replies(self, namespace: Namespace, keys: Sequence[bytes]) -> list[bytes | None]:
        """The records under `keys`, in order; None where there is none."""
        records: list[Any] = self._client.mget([_reply(namespace, key) for key in keys])
        if not isinstance(records, list) or len(records) != len(keys):
            raise _nonsense("replies", records)
        return records

    def keep_reply(self, namespace: Namespace, key: bytes, record: bytes, ttl_s: int) -> None:
        self._keep(keys=[_slot(namespace)], args=["rs", key, ttl_s, record])

    def note_salt(self, tenant: Namespace, salted: Namespace, ttl_s: int) -> None:
        """There are records in `salted`, which is a salt's of the tenant whose own namespace is `tenant`."""
        self._keep(keys=[_slot(tenant)], args=["salts", salted, ttl_s, ""])

    def salts(self, tenant: Namespace) -> list[Namespace]:
        """The namespaces of a tenant's salts that have records, or had some."""
        members: Any = self._client.zrange(f"{_slot(tenant)}salts", 0, -1)
        if not isinstance(members, list):
            raise _nonsense("salts", members)
        return [Namespace(member.decode()) for member in members]

    def forget_replies(self, namespace: Namespace) -> int:
        """Forget some of the records there. Returns how many are left."""
        return _count("forget", self._forget(keys=[_slot(namespace)], args=[FORGET_AT_ONCE]))

    def beat(self, fleet: Namespace, incarnation: Incarnation, replica: Replica, *, lease_s: float) -> Beat:
        """Renew the lease of `incarnation` in `fleet`."""
        record = msgpack.packb(replica._asdict())
        args: list[EncodableT] = [incarnation, round(lease_s * 1000), record, os.urandom(8)]
        match self._beat(keys=[_slot(fleet)], args=args):
            case [bytes(generation), int(joined), int(writable), list(live)]:
                who = frozenset(_incarnation(member) for member in live)
                return Beat(generation or None, bool(joined), bool(writable), who)
            case other:
                raise _nonsense("beat", other)

    def leave(self, fleet: Namespace, incarnation: Incarnation) -> None:
        """End the lease of `incarnation` now: its claims stop counting at the others' next beat."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zrem(f"kv:{{{fleet}}}:live", incarnation)
        pipeline.hdel(f"kv:{{{fleet}}}:rep", incarnation)
        pipeline.execute()

    def replicas(self, fleet: Namespace) -> dict[Incarnation, Replica]:
        """The records of the replicas whose lease has not lapsed (as of the last beat of anyone)."""
        records: dict[bytes, bytes] = self._client.hgetall(f"kv:{{{fleet}}}:rep")  # type: ignore[assignment]
        return {_incarnation(who): _replica(record) for who, record in records.items()}


def _source(name: str) -> str:
    return resources.files("sessions").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def _slot(namespace: Namespace) -> str:
    return f"kv:{{{namespace}}}:"


def _runs(namespace: Namespace) -> str:
    return f"{_slot(namespace)}n:"


def _reply(namespace: Namespace, key: bytes) -> bytes:
    return f"{_slot(namespace)}r:".encode() + key


def _joined(chain: Sequence[BlockHash]) -> bytes:
    return b"".join(chain)


def _incarnation(value: Any) -> Incarnation:
    if not isinstance(value, bytes) or len(value) != 8:
        raise _nonsense("incarnation", value)
    return Incarnation(value)


def _count(script: str, reply: Any) -> int:
    if not isinstance(reply, int):
        raise _nonsense(script, reply)
    return reply


def _replica(record: bytes) -> Replica:
    try:
        return Replica(**msgpack.unpackb(record))
    except (ValueError, TypeError) as error:
        raise InvalidResponse("replica record is not ours") from error


def _nonsense(what: str, reply: Any) -> InvalidResponse:
    return InvalidResponse(f"{what}: unexpected {type(reply).__name__} reply")
