"""Admission: how many requests wait for their first run, and when a refused one should come back.

Owns the waiting requests and the measured rate at which they leave. No lock: one thread, the event loop, calls it; of a
`Request` it reads only `admitted_at`, which the engine thread sets once. No I/O, no tensors.

    submitted ──▶ waiting ──first run──▶ (not ours any more: running, preempted, finished)
                     └─────aborted, failed──▶ (gone)

A preempted request has had its first run and never waits again: the bound is on work that was not begun.
"""

import math
import time
from collections.abc import Callable, Iterable

from sessions.engine.request import Request
from sessions.errors import Overloaded
from sessions.types import RequestId

WINDOW_S = 30.0
"""Time constant of the drain rate: what happened this long ago counts 1/e."""
SHORTEST_RETRY_AFTER_S = 1.0
LONGEST_RETRY_AFTER_S = 60.0


class Admission:
    """Counts single choices: a chat request with `n` waits `n` times. `max_num_waiting` 0 is no bound.

    clock: seconds, monotonic.
    """

    def __init__(self, max_num_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_num_waiting = max_num_waiting
        self._clock = clock
        self._waiting: dict[RequestId, Request] = {}
        self._measured_at = clock()
        self._departures = 0.0
        self._queued_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Choices submitted and not yet begun, as of the last `settle`."""
        return len(self._waiting)

    def admit(self, num_choices: int) -> None:
        """Raise Overloaded if `num_choices` more would not fit behind those that wait; counts nothing.

        Behind nobody any number fits: a request of more choices than the bound would otherwise never be served.
        """
        self.settle()
        if self._max_num_waiting and self._waiting and self.num_waiting + num_choices > self._max_num_waiting:
            raise Overloaded("Too many requests are waiting; try again later.", retry_after_s=self.retry_after_s())

    def submitted(self, requests: Iterable[Request]) -> None:
        """These wait from now on."""
        self._measure(0)
        self._waiting.update((request.id, request) for request in requests)

    def settle(self) -> None:
        """Let go of those that the engine has begun. To be called after every step. O(waiting)."""
        self.ended([request.id for request in self._waiting.values() if request.admitted_at is not None])

    def ended(self, request_ids: Iterable[RequestId]) -> None:
        """These were begun, aborted or failed. Ids that do not wait are ignored, so telling it twice is no harm."""
        leaving = self._waiting.keys() & set(request_ids)
        self._measure(len(leaving))
        for request_id in leaving:
            del self._waiting[request_id]

    def retry_after_s(self) -> float:
        """Seconds until as many have left the queue as wait now, at the measured rate; within 1..60.

            rate          = departures / queued_s
            departures    = sum over every departure of exp(-age / WINDOW_S)
            queued_s      = integral over the time somebody waited of exp(-age / WINDOW_S)
            retry_after_s = num_waiting / rate

        Age and time run only while somebody waits, or quiet hours would look like a slow engine. Less than one
        departure is taken as one: before the first, that is a guess.
        """
        self._measure(0)
        seconds = self.num_waiting * self._queued_s / max(1.0, self._departures)
        return min(LONGEST_RETRY_AFTER_S, max(SHORTEST_RETRY_AFTER_S, seconds))

    def _measure(self, num_departures: int) -> None:
        """Bring the sums of `retry_after_s` up to now; before the queue changes, as its emptiness decides."""
        now = self._clock()
        if self._waiting:
            fade = math.exp((self._measured_at - now) / WINDOW_S)
            self._departures = self._departures * fade + num_departures
            self._queued_s = self._queued_s * fade + WINDOW_S * (1 - fade)
        self._measured_at = now
