"""RemoteDocuments: `Documents` in a Redis, asked within a budget on a thread and a connection of their own.

What is stored is no hint, so it may take longer than a lookup; but a Redis that is frozen or gone holds up one request
by the budget, and then nobody until it answers a probe.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import redis

from sessions.documents import Document, Keeping, RedisDocuments
from sessions.errors import StoreUnavailable
from sessions.index.breaker import Breaker
from sessions.index.caller import Caller
from sessions.index.settings import IndexSettings
from sessions.trie import refuses_writes

T = TypeVar("T")


class _Refused:
    """A living server's answer to a write it does not take."""


class RemoteDocuments:
    """`start` and `stop` once each; the others from the event loop only."""

    def __init__(self, client: redis.Redis, settings: IndexSettings, keeping: Keeping) -> None:
        self._redis = RedisDocuments(client)
        self._keeping = keeping
        breaker = Breaker(threshold=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._caller = Caller(client, breaker, name="anaphora-documents", timeout_s=settings.documents_timeout_s)
        self.start = self._caller.start
        self.stop = self._caller.stop

    async def fetch(self, shelf: str, names: Sequence[str]) -> list[Document | None]:
        asked = tuple(names)
        return await self._ask(lambda: self._redis.fetch(shelf, asked)) if asked else []

    async def put(
        self, shelf: str, name: str, document: Document, *, version: bytes = b"", renew: Sequence[str] = ()
    ) -> bool:
        renewed = tuple(renew)

        def write() -> bool | _Refused:
            try:
                return self._redis.put(shelf, name, document, self._keeping, version, renewed)
            except redis.RedisError as error:
                if refuses_writes(error):  # it lives, and can still be read
                    return _Refused()
                raise

        written = await self._ask(write)
        if isinstance(written, _Refused):
            raise StoreUnavailable
        return written

    async def delete(self, shelf: str, name: str) -> bool:
        return await self._ask(lambda: self._redis.delete(shelf, name))

    async def _ask(self, run: Callable[[], T]) -> T:
        answer = await self._caller.ask(run)
        if answer is None:
            raise StoreUnavailable
        return answer
