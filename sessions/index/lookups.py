"""Lookups: asking Redis about a chain, within a budget that the caller can rely on.

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
from typing import NamedTuple

import redis
import structlog

from sessions.index.breaker import Breaker
from sessions.index.settings import IndexSettings
from sessions.trie import Incarnation, Match, PrefixTrie, namespace_of
from sessions.types import BlockHash

log = structlog.get_logger(__name__)

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


class _Question(NamedTuple):
    root: BlockHash
    chain: tuple[BlockHash, ...]
    ttl_s: int
    deadline: float
    answer: Callable[[Match | None], None]


class Lookups:
    """`start` and `stop` once each. `ask` from the event loop only."""

    def __init__(self, client: redis.Redis, settings: IndexSettings) -> None:
        self._client = client
        self._trie = PrefixTrie(client)
        self._settings = settings
        self._breaker = Breaker(threshold=settings.breaker_failures, open_s=settings.breaker_open_s)
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="anaphora-index-lookup", daemon=True)
        self.num_asked = 0
        self.num_failed = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._questions.put(None)
        self._thread.join(timeout_s)

    def is_ready(self) -> bool:
        return self._breaker.is_ready(time.monotonic())

    async def ask(self, root: BlockHash, chain: Sequence[BlockHash]) -> Match | None:
        """What the trie knows of `chain`; None when it was not asked, did not answer in time, or failed."""
        if not self._breaker.admit(time.monotonic()):
            return None
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Match | None] = loop.create_future()

        def settle(match: Match | None) -> None:
            if not answered.done():
                answered.set_result(match)

        def answer(match: Match | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, match)

        ttl_s = self._settings.ttl_s if self.num_asked % RENEW_EVERY == 0 else 0
        self.num_asked += 1
        deadline = time.monotonic() + self._settings.timeout_s
        self._questions.put(_Question(root, tuple(chain), ttl_s, deadline, answer))
        done, _ = await asyncio.wait({answered}, timeout=self._settings.timeout_s)
        match = answered.result() if done else None
        if match is None:
            self.num_failed += 1
            self._breaker.failed(time.monotonic())
        else:
            self._breaker.succeeded()
        return match

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            if time.monotonic() < question.deadline:
                question.answer(self._look_up(question))
        self._client.close()

    def _look_up(self, question: _Question) -> Match | None:
        try:
            return self._trie.lookup(namespace_of(question.root), question.chain, ttl_s=question.ttl_s)
        except Exception as error:  # noqa: BLE001  # a broken server can make redis-py raise anything
            log.debug("index lookup failed", error=type(error).__name__)
            return None
