"""Documents: what is stored for a tenant under a name, in Redis or in this process. Bytes; what they say is others'.

    doc:{<shelf>}:d:<name>   STRING  8 bytes of version, then what the document says; expires
    doc:{<shelf>}:used       ZSET    name -> when it was last written or built on

A shelf is a tenant's: its name is a keyed digest, so nobody who lacks the server's secret can name one. The braces make
it one cluster slot. Not a hint, unlike all else in Redis: what cannot be asked for raises, and is not "not there".
"""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple, Protocol

import redis
from redis.exceptions import InvalidResponse
from redis.typing import EncodableT

VERSION_BYTES: Final = 8
LOCAL_BYTES: Final = 64 << 20
"""Most bytes of documents, of all tenants together, where this process has to hold them."""
_HELD_BYTES: Final = 400
"""What a document costs beside its content."""


class Document(NamedTuple):
    """version: drawn anew with every writing."""

    version: bytes
    content: bytes

    @classmethod
    def new(cls, content: bytes) -> "Document":
        return cls(os.urandom(VERSION_BYTES), content)


@dataclass(frozen=True, slots=True)
class Keeping:
    """ttl_s: after the last use. most: documents per shelf; past it the least recently used go."""

    ttl_s: int = 30 * 86_400
    most: int = 10_000


class Documents(Protocol):
    """Every method raises StoreUnavailable where nobody can be asked."""

    async def fetch(self, shelf: str, names: Sequence[str]) -> list[Document | None]:
        """In order; None where there is none."""

    async def put(
        self, shelf: str, name: str, document: Document, *, version: bytes = b"", renew: Sequence[str] = ()
    ) -> bool:
        """False, with nothing written, where another version than `version` stands, or none.

        renew: names of documents that this one builds on; their time begins anew.
        """

    async def delete(self, shelf: str, name: str) -> bool:
        """Whether it was there."""


class RedisDocuments:
    """The commands over one client; redis-py's errors pass. As thread-safe as the client."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        source = resources.files("sessions").joinpath("lua", "put_document.lua").read_text(encoding="utf-8")
        self._put = client.register_script(source)

    def fetch(self, shelf: str, names: Sequence[str]) -> list[Document | None]:
        """One round trip."""
        found: Any = self._client.mget([_key(shelf, name) for name in names])
        if not isinstance(found, list) or len(found) != len(names):
            raise InvalidResponse(f"documents: unexpected {type(found).__name__} reply")
        return [None if data is None else Document(data[:VERSION_BYTES], data[VERSION_BYTES:]) for data in found]

    def put(
        self, shelf: str, name: str, document: Document, keeping: Keeping, version: bytes, renew: Sequence[str]
    ) -> bool:
        """One round trip."""
        args: list[EncodableT] = [name, document.version + document.content, keeping.ttl_s, keeping.most, version]
        written = self._put(keys=[f"doc:{{{shelf}}}:"], args=[*args, *renew])
        if written not in (0, 1):
            raise InvalidResponse(f"put_document: unexpected {type(written).__name__} reply")
        return bool(written)

    def delete(self, shelf: str, name: str) -> bool:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.delete(_key(shelf, name))
        pipeline.zrem(f"doc:{{{shelf}}}:used", name)
        num_deleted: Any = pipeline.execute()[0]
        return bool(num_deleted)


class _Held(NamedTuple):
    document: Document
    expires_at: float


class LocalDocuments:
    """`Documents` for who has no Redis: in this process, gone with it. Event loop only."""

    def __init__(self, keeping: Keeping, max_bytes: int = LOCAL_BYTES) -> None:
        self._keeping = keeping
        self._max_bytes = max_bytes
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._names: dict[str, OrderedDict[str, None]] = {}
        self.num_bytes = 0

    async def fetch(self, shelf: str, names: Sequence[str]) -> list[Document | None]:
        return [self._get(shelf, name) for name in names]

    async def put(
        self, shelf: str, name: str, document: Document, *, version: bytes = b"", renew: Sequence[str] = ()
    ) -> bool:
        standing = self._get(shelf, name)
        if version and (standing is None or standing.version != version):
            return False
        for other in renew:
            found = self._get(shelf, other)
            if found is not None:
                self._hold(shelf, other, found)
        self._hold(shelf, name, document)
        while len(self._names.get(shelf, ())) > self._keeping.most:
            self._drop(shelf, next(iter(self._names[shelf])))
        while self.num_bytes > self._max_bytes:
            self._drop(*next(iter(self._held)))
        return True

    async def delete(self, shelf: str, name: str) -> bool:
        is_there = self._get(shelf, name) is not None
        self._drop(shelf, name)
        return is_there

    def _get(self, shelf: str, name: str) -> Document | None:
        held = self._held.get((shelf, name))
        if held is None:
            return None
        if held.expires_at <= time.monotonic():
            self._drop(shelf, name)
            return None
        return held.document

    def _hold(self, shelf: str, name: str, document: Document) -> None:
        self._drop(shelf, name)
        self._held[shelf, name] = _Held(document, time.monotonic() + self._keeping.ttl_s)
        self._names.setdefault(shelf, OrderedDict())[name] = None
        self.num_bytes += _HELD_BYTES + len(document.content)

    def _drop(self, shelf: str, name: str) -> None:
        held = self._held.pop((shelf, name), None)
        if held is None:
            return
        self.num_bytes -= _HELD_BYTES + len(held.document.content)
        del self._names[shelf][name]
        if not self._names[shelf]:
            del self._names[shelf]


def _key(shelf: str, name: str) -> str:
    return f"doc:{{{shelf}}}:d:{name}"
