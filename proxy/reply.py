"""Reply: one running generation as the event loop sees it, for whole answers and streams alike.

    Generation ──pump task──▶ [ready deltas] ──wake──▶ batches(): all that is ready, or [] after a silence

The pump takes deltas as they come and stamps the latency metrics; the reader takes what is ready in one go,
so that a slow client costs one write per wake, not per token. The time limit and `fail()` end the reading
with an error. `close()` is synchronous and idempotent: it is called from clean-ups in which nothing can be
awaited.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from proxy.errors import CompletionTimeout, log_unexpected
from proxy.metrics import Metrics
from proxy.scope import RequestScope
from sessions.errors import EngineFailed, SessionError
from sessions.generation import Generation
from sessions.reports import Delta


class Reply:
    """`keepalive_s`: longest silence of `batches`. `max_time_s`: counted from the arrival of the request."""

    def __init__(
        self,
        generation: Generation,
        held: RequestScope,
        metrics: Metrics,
        *,
        keepalive_s: float,
        max_time_s: float,
    ) -> None:
        self.generation = generation
        self.finish_reasons: dict[int, str] = {}
        self._request_id = held.request_id
        self._started_at = held.started_at
        self._metrics = metrics
        self._keepalive_s = keepalive_s
        self._max_time_s = max_time_s
        self._ready: list[Delta] = []
        self._error: SessionError | None = None
        self._ended = False
        self._wake = asyncio.Event()
        self._last_at: dict[int, float] = {}
        self.time_to_first_token_s: float | None = None
        self._pump = asyncio.create_task(self._run(), name=f"reply {generation.id}")

    async def begin(self) -> None:
        """Wait for the first delta, at most one keep-alive interval. Raises the error if one comes instead.

        Until this returns nothing has been sent, so an early failure still gets a real HTTP status.
        """
        await self._wait()
        if self._error is not None and not self._ready:
            raise self._error

    async def batches(self) -> AsyncIterator[list[Delta]]:
        """Lists of deltas in order; an empty list is a silence of `keepalive_s`.

        Raises SessionError once those are out.
        """
        while True:
            await self._wait()
            batch, self._ready = self._ready, []
            ended, error = self._ended, self._error
            if not ended:
                self._wake.clear()
            if batch or not ended:
                yield batch
            elif error is not None:
                raise error
            else:
                return

    def fail(self, error: SessionError) -> None:
        """End the reading with `error` after what is ready. The generation is aborted."""
        if not self._ended:
            self._end(error)
            self._stop()

    def close(self) -> None:
        """Abort what still runs. Idempotent, synchronous."""
        self._end(None)
        self._stop()

    async def _wait(self) -> None:
        """Until something is ready, the keep-alive interval, or the time limit. Always gives way to the loop.

        A generator that never awaits is never cancelled when its client leaves, hence the `sleep(0)`.
        """
        if self._wake.is_set():
            await asyncio.sleep(0)
            return
        remaining_s = self._started_at + self._max_time_s - time.monotonic()
        try:
            async with asyncio.timeout(min(self._keepalive_s, max(0.0, remaining_s))):
                await self._wake.wait()
        except TimeoutError:
            if remaining_s <= self._keepalive_s:
                self.fail(CompletionTimeout(self._max_time_s))

    async def _run(self) -> None:
        error: SessionError | None = None
        try:
            async for delta in self.generation:
                self._observe(delta)
                self._ready.append(delta)
                self._wake.set()
        except SessionError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - logged; the reader must see an end whatever happens
            log_unexpected(self._request_id, raised)
            error = EngineFailed("unexpected error")
        self._end(error)

    def _observe(self, delta: Delta) -> None:
        now = time.monotonic()
        if self.time_to_first_token_s is None:
            self.time_to_first_token_s = now - self._started_at
            self._metrics.time_to_first_token.observe(self.time_to_first_token_s)
        last_at = self._last_at.get(delta.choice)
        if last_at is not None:
            self._metrics.inter_token_latency.observe(now - last_at)
        self._last_at[delta.choice] = now
        if delta.finish_reason is not None:
            self.finish_reasons[delta.choice] = delta.finish_reason

    def _end(self, error: SessionError | None) -> None:
        if not self._ended:
            self._ended = True
            self._error = error
        self._wake.set()

    def _stop(self) -> None:
        self._pump.cancel()
        self.generation.close()


class OpenReplies:
    """The replies that have not been given back; a drain ends them at its time limit. Event loop only."""

    def __init__(self) -> None:
        self._replies: set[Reply] = set()

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, reply: Reply) -> None:
        self._replies.add(reply)

    def discard(self, reply: Reply) -> None:
        self._replies.discard(reply)

    def fail_all(self, error: SessionError) -> None:
        for reply in self._replies:
            reply.fail(error)
