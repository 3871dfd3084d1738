"""Lookups: asking Redis about a chain, or for records of replies. Hints: an answer that is late is None."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import redis

from sessions.index.breaker import Breaker
from sessions.index.caller import Caller
from sessions.index.settings import IndexSettings
from sessions.trie import Incarnation, Match, PrefixTrie, namespace_of
from sessions.types import BlockHash

RENEW_EVERY = 16
"""One lookup in so many renews the life of the runs it passes: a renewal is a write, and lives last hours."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What Redis says of a chain, in leading blocks. A hint.

    num_own_blocks: what it thinks this replica holds.
    other, num_other_blocks: the live replica that holds most, beside this one; None and 0 when there is none.
    """

    num_own_blocks: int
    other: Incarnation | None
    num_other_blocks: int


class Lookups:
    """`start` and `stop` once each; the others from the event loop only."""

    def __init__(self, client: redis.Redis, settings: IndexSettings) -> None:
        self._trie = PrefixTrie(client)
        self._settings = settings
        breaker = Breaker(threshold=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._caller = Caller(client, breaker, name="anaphora-index-lookup", timeout_s=settings.timeout_s)
        self.start = self._caller.start
        self.stop = self._caller.stop
        self.is_ready = self._caller.is_ready
        self.num_asked = 0

    @property
    def num_failed(self) -> int:
        return self._caller.num_failed

    async def ask(self, root: BlockHash, chain: Sequence[BlockHash]) -> Match | None:
        """What the trie knows of `chain`; None when it was not asked, did not answer in time, or failed."""
        ttl_s = self._settings.ttl_s if self.num_asked % RENEW_EVERY == 0 else 0
        self.num_asked += 1
        asked = tuple(chain)
        return await self._caller.ask(lambda: self._trie.lookup(namespace_of(root), asked, ttl_s=ttl_s))

    async def replies(self, root: BlockHash, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """The records under `keys`; None as for `ask`."""
        asked = tuple(keys)
        return await self._caller.ask(lambda: self._trie.replies(namespace_of(root), asked))

    def keep_reply(self, root: BlockHash, key: bytes, record: bytes, ttl_s: int, salted_of: BlockHash | None) -> None:
        """Write a record when the server can take it; not at all while it is left alone."""
        namespace = namespace_of(root)

        def keep() -> None:
            if salted_of is not None:  # first: a record that is not known of could not be forgotten
                self._trie.note_salt(namespace_of(salted_of), namespace, ttl_s)
            self._trie.keep_reply(namespace, key, record, ttl_s)

        self._caller.tell(keep, self._settings.lease_s)

    def after_keeping(self, run: Callable[[], None]) -> None:
        """Run `run`, which asks nothing of the server, when what is to be kept so far is written or given up."""
        self._caller.afterwards(run)
