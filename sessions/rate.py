"""Rate: how fast something goes, as measured lately. Pure but for the clock."""

import math
import time
from collections.abc import Callable

WINDOW_S = 10.0
"""Seconds of measured work after which a sample counts 1/e."""
FORGET_S = 60.0
"""What nobody has measured for so long is not known any more: it is tried again rather than believed."""


class Rate:
    """Units per second of work. One thread observes; any may read.

    least: samples of fewer units are left out, for they measure their overhead.
    """

    def __init__(self, least: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._least = least
        self._clock = clock
        self._units = 0.0
        self._seconds = 0.0
        self._observed_at = -math.inf

    @property
    def value(self) -> float | None:
        """None before the first sample and `FORGET_S` after the last."""
        if self._clock() - self._observed_at > FORGET_S:
            return None
        return self._units / self._seconds

    def observe(self, units: int, seconds: float) -> None:
        if units < self._least or seconds <= 0:
            return
        fade = 0.0 if self.value is None else math.exp(-seconds / WINDOW_S)
        self._units = self._units * fade + units
        self._seconds = self._seconds * fade + seconds
        self._observed_at = self._clock()
