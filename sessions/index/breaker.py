"""Breaker: when to leave a failing server alone. Pure but for a lock; the caller brings the clock."""

import threading


class Breaker:
    """Closed until `threshold` failures in a row; then open for `open_s`, then one probe decides.

        closed ──threshold failures──▶ open ──open_s──▶ probe ──success──▶ closed
           ▲                            ▲                 └────failure────▶ open
           └────── any success ─────────┴ (from anywhere)

    Thread-safe. A probe that is never reported on is replaced by another after `open_s`.
    """

    def __init__(self, *, threshold: int = 3, open_s: float = 0.5) -> None:
        self._threshold = threshold
        self._open_s = open_s
        self._lock = threading.Lock()
        self._num_failures = 0
        self._next_probe_at = 0.0

    @property
    def is_closed(self) -> bool:
        return self._num_failures < self._threshold

    def is_ready(self, now: float) -> bool:
        """Whether `admit` would say yes."""
        return self.is_closed or now >= self._next_probe_at

    def admit(self, now: float) -> bool:
        """Whether a call may be made now. While open, admits one probe every `open_s`."""
        with self._lock:
            if self.is_closed:
                return True
            if now < self._next_probe_at:
                return False
            self._next_probe_at = now + self._open_s
            return True

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be made; 0 while closed."""
        return 0.0 if self.is_closed else max(0.0, self._next_probe_at - now)

    def succeeded(self) -> None:
        with self._lock:
            self._num_failures = 0

    def failed(self, now: float) -> None:
        with self._lock:
            self._num_failures += 1
            if not self.is_closed:
                self._next_probe_at = now + self._open_s
