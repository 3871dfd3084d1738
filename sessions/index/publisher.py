"""Publisher: the thread that tells Redis what this replica holds.

Owns the writing connection, the lease and the view of the fleet; drains the `Ledger`. One call to Redis per
turn of its loop, the most urgent first, so that a beat is never late because a resync is long:

    beat (or probe, while the breaker is open)  ▶  forgetting  ▶  fresh claims  ▶  a resync's claims  ▶  cuts

A failure loses at most one message and marks the ledger, and the next good beat makes it good with a resync.
"""

import threading
import time
from collections.abc import Callable

import redis
import structlog

from sessions.index.breaker import Breaker
from sessions.index.forgetting import Forgetting
from sessions.index.ledger import Chain, Cut, Ledger, ResyncSource
from sessions.index.settings import IndexSettings, is_supported
from sessions.trie import Incarnation, Namespace, PrefixTrie, Replica, namespace_of, refuses_writes

log = structlog.get_logger(__name__)


class Publisher:
    """`start` and `stop` once each; attributes without underscore may be read from any thread.

    others: live incarnations beside our own, as of the last beat.
    is_writable: the server takes writes, as of the last call.
    is_unsupported: the server is too old; the thread has ended.
    """

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        *,
        fleet: Namespace,
        replica: Replica,
        resync_source: ResyncSource,
        settings: IndexSettings,
        wait_for_server: Callable[[float], bool] | None = None,
    ) -> None:
        self._client = client
        self._trie = PrefixTrie(client)
        self._ledger = ledger
        self._fleet = fleet
        self._replica = replica
        self._resync_source = resync_source
        self._settings = settings
        self._wait_for_server = wait_for_server
        self._breaker = Breaker(threshold=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="anaphora-index", daemon=True)
        self._generation: bytes | None = None
        self._is_greeted = False
        self._beat_at = 0.0
        self._resync_at = 0.0
        self._forgetting = Forgetting(settings.forgetting)
        self.others: frozenset[Incarnation] = frozenset()
        self.is_writable = True
        self.is_unsupported = False
        self.num_published = self.num_cuts = self.num_resyncs = self.num_errors = 0

    @property
    def is_up(self) -> bool:
        """The server was reached and answers."""
        return self._is_greeted and self._breaker.is_closed

    @property
    def is_forgetting(self) -> bool:
        return len(self._forgetting) > 0

    @property
    def num_forgotten(self) -> int:
        """Jobs that are done."""
        return self._forgetting.num_done

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the lease, if the server lets us, and the thread. Returns within `timeout_s`."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def wake(self) -> None:
        """The ledger has news."""
        self._wake.set()

    def forget_replies(self, namespace: Namespace, *, and_salts: bool) -> None:
        """Forget every record there, as soon as the server lets us. Any thread. and_salts: of its salts too."""
        self._forgetting.add(namespace, and_salts=and_salts)
        self._wake.set()

    def beat_now(self) -> None:
        """The incarnation changed: others should hear of it."""
        self._beat_at = 0.0
        self._wake.set()

    def _run(self) -> None:
        if self._wait_for_server:
            self._wait_for_server(1.0)
        while not self._stopping.is_set() and not self.is_unsupported:
            self._wake.clear()
            wait_s = self._turn(time.monotonic())
            if wait_s > 0:
                self._wait(wait_s)
        while self._forgetting and self.is_up and self.is_writable and self._attempt(self._forget_some):
            pass
        if self.is_up:
            self._attempt(lambda: self._trie.leave(self._fleet, self._ledger.incarnation))
        self._client.close()

    def _wait(self, wait_s: float) -> None:
        """Until there is news or `wait_s` is over; while the server is left alone, news can wait too."""
        (self._wake if self._breaker.is_closed else self._stopping).wait(wait_s)

    def _turn(self, now: float) -> float:
        """Make the most urgent call. Returns for how many seconds nothing is due."""
        if not self._breaker.admit(now):
            return self._breaker.wait_s(now)
        if not self.is_up or now >= self._beat_at:
            if not self._attempt(lambda: self._beat(now)):
                self._beat_at = 0.0
            return 0.0
        cut_delay_s = self._settings.cut_delay_s
        if self.is_writable:
            if self._forgetting:
                self._attempt(self._forget_some)
                return 0.0
            if chain := self._ledger.next_chain():
                self._insert(chain)
                return 0.0
            if cut := self._ledger.next_cut(now, cut_delay_s):
                self._cut(cut)
                return 0.0
        cut_wait_s = self._ledger.cut_wait_s(now, cut_delay_s) if self.is_writable else float("inf")
        return min(self._beat_at - now, cut_wait_s)

    def _attempt(self, call: Callable[[], object]) -> bool:
        """Whether `call` went well. A failure trips the breaker, unless it is a refusal to write."""
        was_up = self.is_up
        try:
            call()
        except Exception as error:  # noqa: BLE001  # a broken server can make redis-py raise anything
            self.num_errors += 1
            if refuses_writes(error):
                self._note_writable(False)
                return False
            self._breaker.failed(time.monotonic())
            if was_up and not self.is_up:
                log.warning("index is down", error=type(error).__name__)
            return False
        self._breaker.succeeded()
        if self.is_up and not was_up:
            log.info("index is up", num_others=len(self.others))
        return True

    def _beat(self, now: float) -> None:
        """Renew the lease; find out who lives, and whether anything of ours may have been lost. Raises."""
        if not self._is_greeted and not self._greet():
            return
        self._beat_at = now + self._settings.beat_s
        self._ledger.settle()
        while retired := self._ledger.retired():
            self._trie.leave(self._fleet, retired)
        incarnation = self._ledger.incarnation
        beat = self._trie.beat(self._fleet, incarnation, self._replica, lease_s=self._settings.lease_s)
        self.others = beat.live - {incarnation}
        is_other_data = beat.generation not in (None, self._generation)
        is_writable_again = beat.writable and not self.is_writable
        self._generation = beat.generation or self._generation
        self._note_writable(beat.writable)
        if is_other_data or is_writable_again or beat.joined or now >= self._resync_at:
            self._ledger.lost_claims()
        if self.is_writable and (resynced := self._ledger.begin_resync()):
            self._resync(resynced, now)

    def _note_writable(self, is_writable: bool) -> None:
        if is_writable != self.is_writable:
            self.is_writable = is_writable
            log.warning("index takes writes again" if is_writable else "index refuses writes")

    def _greet(self) -> bool:
        """Whether the server will do; a server that is too old is left for good."""
        self.is_unsupported = not is_supported(self._client)
        if self.is_unsupported:
            log.warning("index is off: the server is older than Redis 6.2")
        self._is_greeted = not self.is_unsupported
        return self._is_greeted

    def _resync(self, incarnation: Incarnation, now: float) -> None:
        """Queue the pool's leaves; they are told like any claim, after the fresh ones."""
        try:
            leaves = [(root, tuple(blocks)) for root, blocks in self._resync_source()]
        except Exception as error:  # noqa: BLE001  # the pool's owner may be stopping; the next beat asks again
            log.warning("index resync has no source", error=type(error).__name__)
            self._ledger.learn(incarnation, [])
            self._ledger.lost_claims()
            return
        self._ledger.learn(incarnation, leaves)
        self.num_resyncs += 1
        self._resync_at = now + self._settings.resync_s

    def _forget_some(self) -> None:
        """One call's worth of the oldest job. Raises; then it is tried again."""
        job = self._forgetting.first()
        if job is not None and job.and_salts:
            self._forgetting.done(job, then=(job.namespace, *self._trie.salts(job.namespace)))
        elif job is not None and not self._trie.forget_replies(job.namespace):
            self._forgetting.done(job)

    def _insert(self, chain: Chain) -> None:
        namespace, ttl_s = namespace_of(chain.root), self._settings.ttl_s
        if self._attempt(lambda: self._trie.insert(namespace, chain.blocks, chain.incarnation, ttl_s=ttl_s)):
            self.num_published += 1
        else:
            self._ledger.lost_claims()

    def _cut(self, cut: Cut) -> None:
        namespace = namespace_of(cut.root)
        if self._attempt(lambda: self._trie.cut(namespace, cut.blocks, cut.start, cut.incarnation)):
            self.num_cuts += 1
        else:
            self._ledger.retry(cut)
