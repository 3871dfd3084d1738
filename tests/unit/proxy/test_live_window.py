"""Percentiles and shares of the last minute, out of cumulative counts."""

import math
from typing import Any

import pytest

from proxy.live_window import WINDOW_S, RecentPace, buckets_of, latency, quantile
from proxy.metrics import Metrics
from sessions.reports import Stats

BOUNDS = [0.1, 0.2, 0.5, math.inf]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([10, 10, 10, 10], 0.5, 0.05),
        ([10, 20, 20, 20], 0.5, 0.1),
        ([10, 20, 20, 20], 0.75, 0.15),
        ([0, 0, 4, 4], 0.25, 0.275),
        ([0, 0, 0, 3], 0.5, 0.5),
        ([5, 5, 5, 10], 0.95, 0.5),
    ],
)
def test_a_quantile_is_prometheus_s(counts: list[float], share: float, expected: float) -> None:
    assert quantile(BOUNDS, counts, share) == pytest.approx(expected)


def test_nothing_observed_has_no_percentiles() -> None:
    same = [(0.1, 3.0), (math.inf, 4.0)]
    assert latency(same, same) is None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("proxy.live_window.time", type("time", (), {"monotonic": made}))
    return made


def stats(prompt: int, cached: int) -> Stats:
    return Stats(prefix_cache_queries=prompt, prefix_cache_hits=cached, generation_tokens=7)


def test_the_first_look_sees_all_and_later_ones_the_last_minute(clock: Clock) -> None:
    metrics = Metrics(Stats)
    pace = RecentPace(metrics)
    metrics.time_to_first_token.observe(0.15)
    clock.now += 3600
    first: Any = pace.look(stats(100, 40))
    assert (first.seconds, first.prompt_tokens, first.cached_tokens, first.generated_tokens) == (3600, 100, 40, 7)
    assert first.ttft.count == 1 and 0.1 < first.ttft.p50 < 0.2 and first.itl is None
    for _ in range(2 * int(WINDOW_S)):
        clock.now += 1
        pace.look(stats(160, 90))
    later = pace.look(stats(170, 99))
    assert later.seconds == WINDOW_S
    assert (later.prompt_tokens, later.cached_tokens, later.generated_tokens, later.ttft) == (10, 9, 0, None)


def test_however_many_look_few_samples_are_kept(clock: Clock) -> None:
    pace = RecentPace(Metrics(Stats))
    for _ in range(5000):
        clock.now += 0.1
        pace.look(stats(0, 0))
    assert len(pace._samples) <= 2 * WINDOW_S + 2


def test_buckets_are_the_exposition_s() -> None:
    metrics = Metrics(Stats)
    metrics.inter_token_latency.observe(0.004)
    buckets = dict(buckets_of(metrics.inter_token_latency))
    assert (buckets[0.0025], buckets[0.005], buckets[math.inf]) == (0, 1, 1)
