"""Lookups: asking Redis about a chain or for records of replies, within a budget that the caller can rely on.

Owns one thread with one connection, so that a lookup never waits behind a beat, an insert or a resync, and
the event loop never waits for a socket. The caller's deadline is the event loop's own: whatever the thread is
stuck in, the answer is there in time, and it is None. Nothing is cancelled, so no connection is dropped
half-way and no exception is left.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import redis
import structlog

from sessions.index.breaker import Breaker
from sessions.index.settings import IndexSettings
from sessions.trie import Incarnation, Match, PrefixTrie, namespace_of
from sessions.types import BlockHash

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_KEEPING = 1_000
"""Records that wait to be written; more are not kept."""

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


class _Call(NamedTuple):
    """Something to ask of the server before the monotonic `deadline`; `answer` gets None if that failed."""

    run: Callable[[], Any]
    deadline: float
    answer: Callable[[Any], None]


class Lookups:
    """`start` and `stop` once each; the others from the event loop only."""

    def __init__(self, client: redis.Redis, settings: IndexSettings) -> None:
        self._client = client
        self._trie = PrefixTrie(client)
        self._settings = settings
        self._breaker = Breaker(threshold=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="anaphora-index-lookup", daemon=True)
        self.num_asked = 0
        self.num_failed = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._calls.put(None)
        self._thread.join(timeout_s)

    def is_ready(self) -> bool:
        return self._breaker.is_ready(time.monotonic())

    async def ask(self, root: BlockHash, chain: Sequence[BlockHash]) -> Match | None:
        """What the trie knows of `chain`; None when it was not asked, did not answer in time, or failed."""
        ttl_s = self._settings.ttl_s if self.num_asked % RENEW_EVERY == 0 else 0
        self.num_asked += 1
        asked = tuple(chain)
        return await self._within_budget(lambda: self._trie.lookup(namespace_of(root), asked, ttl_s=ttl_s))

    async def replies(self, root: BlockHash, keys: Sequence[bytes]) -> list[bytes | None] | None:
        """The records under `keys`; None as for `ask`."""
        asked = tuple(keys)
        return await self._within_budget(lambda: self._trie.replies(namespace_of(root), asked))

    def keep_reply(self, root: BlockHash, key: bytes, record: bytes, ttl_s: int) -> None:
        """Write a record when the server can take it; not at all while it is left alone."""
        now = time.monotonic()
        if self._breaker.is_ready(now) and self._calls.qsize() < MAX_KEEPING:
            namespace = namespace_of(root)
            deadline = now + self._settings.lease_s
            self._calls.put(_Call(lambda: self._trie.keep_reply(namespace, key, record, ttl_s), deadline, _nobody))

    async def _within_budget(self, run: Callable[[], T]) -> T | None:
        if not self._breaker.admit(time.monotonic()):
            return None
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T | None] = loop.create_future()

        def settle(result: T | None) -> None:
            if not answered.done():
                answered.set_result(result)

        def answer(result: T | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result)

        self._calls.put(_Call(run, time.monotonic() + self._settings.timeout_s, answer))
        done, _ = await asyncio.wait({answered}, timeout=self._settings.timeout_s)
        result = answered.result() if done else None
        if result is None:
            self.num_failed += 1
            self._breaker.failed(time.monotonic())
        else:
            self._breaker.succeeded()
        return result

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            if time.monotonic() < call.deadline:
                call.answer(self._attempt(call))
        self._client.close()

    def _attempt(self, call: _Call) -> Any:
        try:
            return call.run()
        except Exception as error:  # noqa: BLE001  # a broken server can make redis-py raise anything
            log.debug("call to the index failed", error=type(error).__name__)
            return None


def _nobody(_: object) -> None:
    """Takes the answer of a write that nobody waits for."""
