"""PrefixIndex: the one door to the Redis trie, for the event loop and the engine thread.

Owns the ledger, the publisher and the lookups, and the embedded server if there is one. Nothing here raises
or waits because of Redis; the only call that takes time is `await lookup`, at most the budget.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from sessions.embedded_redis import EmbeddedRedis, find_server, runtime_folder
from sessions.hashing import HashChain
from sessions.index.ledger import Ledger, ResyncSource
from sessions.index.lookups import Lookup, Lookups
from sessions.index.publisher import Publisher
from sessions.index.remote_documents import RemoteDocuments
from sessions.index.settings import IndexSettings, connect
from sessions.trie import Incarnation, Match, Replica, namespace_of
from sessions.types import BlockHash

log = structlog.get_logger(__name__)

IndexMode = Literal["auto", "redis", "embedded", "off"]
IndexState = Literal["redis", "embedded", "read_only", "connecting", "down", "off"]
"""redis, embedded: well, and whose. read_only: answers but refuses writes, so others' claims are seen and ours wait."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Counters that only grow. dropped: chains and evictions past a bound. errors: calls that failed."""

    state: IndexState = "off"
    lookups: int = 0
    errors: int = 0
    resyncs: int = 0
    dropped: int = 0
    published: int = 0
    cuts: int = 0


class PrefixIndex:
    """Without a server (`url=None`, no `embedded`) it is off: every call is a no-op.

    fleet: what replicas that may share KV have in common (the model's fingerprint); names the fleet in Redis.
    resync_source: gives the pool's leaf chains; called from the index thread, which the caller makes safe.
    Raises ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str | None,
        *,
        fleet: bytes,
        resync_source: ResyncSource,
        replica: Replica | None = None,
        settings: IndexSettings | None = None,
        embedded: EmbeddedRedis | None = None,
    ) -> None:
        settings = settings or IndexSettings()
        self._embedded = embedded
        self._is_started = False
        self._num_forgets = 0
        self._reply_ttl_s = settings.reply_ttl_s
        self._ledger = Ledger(max_chains=settings.max_chains, max_evictions=settings.max_evictions)
        self._publisher: Publisher | None = None
        self._lookups: Lookups | None = None
        self.documents: RemoteDocuments | None = None
        """What is stored in the same Redis; None where there is no Redis, or nothing is to be stored."""
        url = embedded.url if embedded else url
        if url is None:
            return
        self._lookups = Lookups(connect(url, settings.timeout_s), settings)
        if settings.keeping is not None:
            client = connect(url, settings.documents_timeout_s)
            self.documents = RemoteDocuments(client, settings, settings.keeping)
        self._publisher = Publisher(
            connect(url, settings.timeout_s),
            self._ledger,
            fleet=namespace_of(fleet),
            replica=replica or Replica(),
            resync_source=resync_source,
            settings=settings,
            wait_for_server=embedded.wait_ready if embedded else None,
        )

    @property
    def incarnation(self) -> Incarnation:
        """Who we are in Redis, for the life of this pool."""
        return self._ledger.incarnation

    @property
    def state(self) -> IndexState:
        if self._publisher is None or self._publisher.is_unsupported or not self._is_started:
            return "off"
        if not self._publisher.is_up:
            return "down" if self._publisher.num_errors else "connecting"
        if not self._publisher.is_writable:
            return "read_only"
        return "embedded" if self._embedded else "redis"

    def start(self) -> None:
        """Start the threads and return at once, Redis or not. Once in the life of an index."""
        if self._publisher is None or self._lookups is None:
            return
        if self._embedded:
            self._embedded.start()
        self._publisher.start()
        self._lookups.start()
        if self.documents is not None:
            self.documents.start()
        self._is_started = True

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the lease and the threads within about `timeout_s`, however the server is. Idempotent."""
        if not self._is_started or self._publisher is None or self._lookups is None:
            return
        self._is_started = False
        deadline = time.monotonic() + timeout_s
        self._publisher.stop(timeout_s)
        self._lookups.stop(max(0.0, deadline - time.monotonic()))
        if self.documents is not None:
            self.documents.stop(max(0.0, deadline - time.monotonic()))
        if self._embedded:
            self._embedded.stop(max(0.1, deadline - time.monotonic()))

    def publish(self, root: BlockHash, chain: Sequence[BlockHash]) -> None:
        """The pool holds all of `chain`, from the first block under `root`. Any thread; does not wait."""
        if self._publisher:
            self._ledger.publish(root, chain)
            self._publisher.wake()

    def evicted(self, hashes: Iterable[BlockHash]) -> None:
        """The pool gave up these blocks, leaves before what they hang from. Any thread; does not wait.

        Every eviction is to be reported; hashes that were never published are ignored.
        """
        if self._publisher:
            self._ledger.evicted(hashes, time.monotonic())
            self._publisher.wake()

    def reset(self) -> None:
        """The pool was emptied: all claims end at once, with the incarnation that made them. Any thread."""
        if self._publisher:
            self._ledger.clear()
            self._publisher.beat_now()

    def should_ask(self) -> bool:
        """Whether a lookup can tell anything: the server answers and somebody else lives. Costs nothing."""
        if not self._is_started or self._publisher is None or self._lookups is None:
            return False
        return self._publisher.is_up and bool(self._publisher.others) and self._lookups.is_ready()

    async def lookup(self, root: BlockHash, chain: Sequence[BlockHash]) -> Lookup | None:
        """Who holds how much of `chain`; None when it was not asked or did not answer within the budget.

        Read-repair: where Redis claims more for us than we hold, the rest is withdrawn.
        """
        if not chain or not self.should_ask() or self._publisher is None or self._lookups is None:
            return None
        match = await self._lookups.ask(root, chain)
        if match is None:
            return None
        lookup = self._judge(match, self._publisher.others)
        if lookup.num_own_blocks > self._ledger.num_held(chain):
            self._ledger.repair(root, chain)
            self._publisher.wake()
        return lookup

    async def num_elsewhere(self, chain: HashChain, num_local: int) -> int:
        """How many blocks after the first `num_local` others hold, as Redis says; 0 where it was not asked.

        One round trip for each stretch of the chain that is not held here: two only where shared content is missing.
        """
        asked = [stretch for stretch in chain.stretches() if stretch.end > num_local]
        found = await asyncio.gather(*(self.lookup(root, chain.hashes[start:end]) for root, start, end in asked))
        reached = num_local
        for (_, start, _), lookup in zip(asked, found, strict=True):
            if lookup is not None and start <= reached:
                reached = max(reached, start + lookup.num_other_blocks)
        return reached - num_local

    async def fetch_replies(self, root: BlockHash, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """Records of replies under `keys`; None when nobody was asked or answered within the budget.

        Nor while something is still to be forgotten there: it could be this.
        """
        if not self._reply_ttl_s or self._publisher is None or self._lookups is None or not self._publisher.is_up:
            return None
        before = self._num_forgets, self._publisher.num_forgotten
        records = await self._lookups.replies(root, keys)
        is_current = before == (self._num_forgets, self._publisher.num_forgotten) and not self._publisher.is_forgetting
        return records if is_current else None

    def keep_reply(self, root: BlockHash, key: bytes, record: bytes, salted_of: BlockHash | None = None) -> None:
        """Event loop; does not wait. Where Redis is away, or is not to hold replies, nothing happens.

        salted_of: the tenant's own root, where `root` is that of a salt.
        """
        if self._reply_ttl_s and self._publisher and self._lookups and self._publisher.is_up:
            self._lookups.keep_reply(root, key, record, self._reply_ttl_s, salted_of)

    def forget_replies(self, root: BlockHash, *, and_salts: bool = False) -> None:
        """Delete every record under `root` as soon as Redis can be reached, by this process or the next. Does not wait.

        and_salts: `root` is a tenant's own; under its salts' roots too. What is said before it is done may go too.
        """
        publisher, lookups = self._publisher, self._lookups
        if publisher is not None and lookups is not None and self._is_started:
            namespace = namespace_of(root)
            self._num_forgets += 1
            lookups.after_keeping(lambda: publisher.forget_replies(namespace, and_salts=and_salts))

    def stats(self) -> IndexStats:
        if self._publisher is None or self._lookups is None:
            return IndexStats()
        return IndexStats(
            state=self.state,
            lookups=self._lookups.num_asked,
            errors=self._lookups.num_failed + self._publisher.num_errors,
            resyncs=self._publisher.num_resyncs,
            dropped=self._ledger.num_dropped,
            published=self._publisher.num_published,
            cuts=self._publisher.num_cuts,
        )

    def _judge(self, match: Match, live: frozenset[Incarnation]) -> Lookup:
        """The trie does not know who lives: that is in the fleet's slot, and the last beat brought it."""
        own = match.holders.get(self._ledger.incarnation)
        others = [(claim.num_blocks, who) for who, claim in match.holders.items() if who in live]
        num_blocks, other = max(others, default=(0, None))
        return Lookup(own.num_blocks if own else 0, other, num_blocks)


def open_index(
    mode: IndexMode,
    redis_url: str | None,
    *,
    fleet: bytes,
    resync_source: ResyncSource,
    replica: Replica | None = None,
    settings: IndexSettings | None = None,
    data: Path | None = None,
) -> PrefixIndex:
    """The index an operator asked for, not started. `auto`: the URL's server, else an embedded one, else off.

    data: where an embedded server keeps its data; None: it does not.

    Raises ValueError for a mode or URL that cannot be meant. An embedded server that cannot be had is off,
    logged.
    """
    embedded = None
    if mode == "redis" and redis_url is None:
        raise ValueError("index mode 'redis' needs a Redis URL")
    if mode == "embedded" or (mode == "auto" and redis_url is None):
        embedded = _embedded_server(data)
    url = redis_url if mode in ("auto", "redis") else None
    return PrefixIndex(
        url, fleet=fleet, resync_source=resync_source, replica=replica, settings=settings, embedded=embedded
    )


def _embedded_server(data: Path | None) -> EmbeddedRedis | None:
    binary = find_server()
    if binary is None:
        log.info("index is off: no Redis URL, and no valkey-server to start")
        return None
    try:
        return EmbeddedRedis(binary, runtime_folder(), data)
    except (OSError, ValueError) as error:
        log.warning("index is off: no private folder for the embedded server", error=str(error))
        return None
