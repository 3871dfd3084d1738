"""LiveWindow: what the last minute was like, out of the same histograms and counters that `/metrics` shows.

    ──●───────●──●──●──●──●──●──▶        samples of cumulative counts, taken when somebody looks
      └─ base                └─ now      the window is from the newest one that is a minute old to now

Nothing is counted twice and nothing runs while nobody looks: then the window is from the last look on. Event loop.
"""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import Histogram

from proxy.live_schemas import LiveLatency, LiveWindow
from proxy.metrics import Metrics
from sessions.reports import Stats

WINDOW_S: Final = 60.0
_APART_S: Final = 0.5
"""Samples are no closer: however many look, so many are kept."""

Buckets = list[tuple[float, float]]
"""(upper bound, observations up to it), cumulative, the last bound infinite."""


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    ttft: Buckets
    itl: Buckets
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int


class RecentPace:
    """One per app; all who look share its samples."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        zeros = [(bound, 0.0) for bound, _ in buckets_of(metrics.time_to_first_token)]
        others = [(bound, 0.0) for bound, _ in buckets_of(metrics.inter_token_latency)]
        self._samples = deque([_Sample(time.monotonic(), zeros, others, 0, 0, 0)])

    def look(self, stats: Stats) -> LiveWindow:
        """The window that ends now."""
        now = self._sample(stats)
        while len(self._samples) > 1 and self._samples[1].at <= now.at - WINDOW_S:
            self._samples.popleft()
        base = self._samples[0]
        if now.at - self._samples[-1].at >= _APART_S:
            self._samples.append(now)
        return LiveWindow(
            seconds=round(now.at - base.at, 3),
            prompt_tokens=now.prompt_tokens - base.prompt_tokens,
            cached_tokens=now.cached_tokens - base.cached_tokens,
            generated_tokens=now.generated_tokens - base.generated_tokens,
            ttft=latency(base.ttft, now.ttft),
            itl=latency(base.itl, now.itl),
        )

    def _sample(self, stats: Stats) -> _Sample:
        return _Sample(
            time.monotonic(),
            buckets_of(self._metrics.time_to_first_token),
            buckets_of(self._metrics.inter_token_latency),
            stats.prefix_cache_queries,
            stats.prefix_cache_hits,
            stats.generation_tokens,
        )


def buckets_of(histogram: Histogram) -> Buckets:
    [metric] = histogram.collect()
    return [(float(sample.labels["le"]), sample.value) for sample in metric.samples if sample.name.endswith("_bucket")]


def latency(before: Buckets, now: Buckets) -> LiveLatency | None:
    """Percentiles of what was observed between two looks; None if nothing was."""
    counts = [later - earlier for (_, earlier), (_, later) in zip(before, now, strict=True)]
    if not counts[-1]:
        return None
    bounds = [bound for bound, _ in now]
    p50, p95, p99 = (quantile(bounds, counts, share) for share in (0.5, 0.95, 0.99))
    return LiveLatency(p50=p50, p95=p95, p99=p99, count=int(counts[-1]))


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float:
    """As Prometheus' `histogram_quantile`: linear within a bucket; the last finite bound for what lies above it.

    counts: cumulative, by upper bound; the last one is positive.
    """
    rank = share * counts[-1]
    at = min(bisect_right(counts, rank - 1e-9), len(bounds) - 1)
    if at == len(bounds) - 1:
        return bounds[-2]
    low, high = (0.0, bounds[0]) if at == 0 else (bounds[at - 1], bounds[at])
    below = 0.0 if at == 0 else counts[at - 1]
    return low + (high - low) * (rank - below) / (counts[at] - below)
