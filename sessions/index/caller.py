"""Caller: asking a Redis within a budget that the event loop can rely on.

Owns one thread with one connection, so that a question never waits behind a beat, an insert or a resync, and the event
loop never waits for a socket. The caller's deadline is the event loop's own: whatever the thread is stuck in, the
answer is there in time, and it is None. Nothing is cancelled, so no connection is dropped half-way and no exception is
left.
"""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import redis
import structlog

from sessions.index.breaker import Breaker

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_TOLD = 1_000
"""Things that wait to be told; more are not."""


class _Call(NamedTuple):
    """Something to ask of the server before the monotonic `deadline`; `answer` gets None if that failed."""

    run: Callable[[], Any]
    deadline: float
    answer: Callable[[Any], None]


class Caller:
    """`start` and `stop` once each; the others from the event loop only.

    client: this thread's own. timeout_s: the budget of one question, as its asker sees it.
    """

    def __init__(self, client: redis.Redis, breaker: Breaker, *, name: str, timeout_s: float) -> None:
        self._client = client
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.num_failed = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        self._calls.put(None)
        self._thread.join(timeout_s)

    def is_ready(self) -> bool:
        return self._breaker.is_ready(time.monotonic())

    def tell(self, run: Callable[[], object], within_s: float) -> None:
        """Run it when the server can take it; not at all while it is left alone. Does not wait."""
        now = time.monotonic()
        if self._breaker.is_ready(now) and self._calls.qsize() < MAX_TOLD:
            self._calls.put(_Call(run, now + within_s, _nobody))

    def afterwards(self, run: Callable[[], object]) -> None:
        """Run what asks nothing of the server on the thread, when all that was told before is done or given up."""
        self._calls.put(_Call(run, math.inf, _nobody))

    async def ask(self, run: Callable[[], T]) -> T | None:
        """What `run` returns, on the thread; None when it was not asked, did not answer in time, or failed."""
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

        self._calls.put(_Call(run, time.monotonic() + self._timeout_s, answer))
        done, _ = await asyncio.wait({answered}, timeout=self._timeout_s)
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
            log.debug("call to Redis failed", error=type(error).__name__)
            return None


def _nobody(_: object) -> None:
    """Takes the answer of what was told."""
