"""Prometheus objects, in a registry of this app's own (two apps in a process must not share counts).

Histograms are observed as replies run; gauges and counters of the engine are read from `ChatService.stats()`
at scrape. Names follow vLLM's stems; token counts are in tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, StateSetMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sessions.reports import Stats

PREFIX = "anaphora_"
_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_DURATION_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class StatMetric:
    """One field of `Stats` as a metric; counters get `_total` at exposition."""

    field: str
    kind: Literal["gauge", "counter"]
    documentation: str
    name: str = ""

    @property
    def exposed_name(self) -> str:
        return PREFIX + (self.name or self.field)


STAT_METRICS = (
    StatMetric("num_requests_running", "gauge", "Sequences in the engine's running set."),
    StatMetric("num_requests_waiting", "gauge", "Requests that wait for the engine."),
    StatMetric("kv_cache_usage", "gauge", "Share of the KV pool that running requests hold, 0 to 1."),
    StatMetric("kv_cache_cached", "gauge", "Share of the KV pool that holds reusable KV, 0 to 1."),
    StatMetric("prefix_cache_queries", "counter", "Prompt tokens looked up in the KV pool."),
    StatMetric("prefix_cache_hits", "counter", "Prompt tokens served from the KV pool, or from below through it."),
    StatMetric("prompt_tokens", "counter", "Prompt tokens of finished and running requests."),
    StatMetric("generation_tokens", "counter", "Tokens generated."),
    StatMetric("num_forced_tokens", "counter", "Tokens that a grammar forced, computed many at once."),
    StatMetric("num_draft_tokens", "counter", "Guessed tokens that a step verified (speculation)."),
    StatMetric("num_accepted_tokens", "counter", "Guessed tokens that were right."),
    StatMetric("num_preemptions", "counter", "Requests whose blocks were taken and recomputed later."),
    StatMetric("num_evicted_blocks", "counter", "Cached blocks that lost their hash to make room."),
    StatMetric("num_steps", "counter", "Engine steps run."),
    StatMetric("index_errors", "counter", "Calls to the Redis trie that failed or ran out of time."),
    StatMetric("index_lookups", "counter", "Lookups in the Redis trie."),
    StatMetric("index_resyncs", "counter", "Times the pool's content was told to the Redis trie anew."),
    StatMetric("index_dropped", "counter", "Events for the Redis trie dropped from a full queue."),
    StatMetric("index_elsewhere_tokens", "counter", "Prompt tokens that only another replica holds, as Redis says."),
    StatMetric("host_blocks", "gauge", "Blocks of KV in host memory, below the pool."),
    StatMetric("host_bytes", "gauge", "Bytes of KV in host memory, below the pool."),
    StatMetric("host_written_blocks", "counter", "Blocks copied to host memory."),
    StatMetric("host_dropped_paths", "counter", "Prompts and turns that could not be copied to host memory whole."),
    StatMetric("host_loaded_tokens", "counter", "Prompt tokens whose KV came from host memory."),
    StatMetric("host_errors", "counter", "Copies to and from host memory that failed."),
    StatMetric("disk_blocks", "gauge", "Blocks of KV on disk."),
    StatMetric("disk_bytes", "gauge", "Bytes of KV on disk."),
    StatMetric("disk_written_blocks", "counter", "Blocks written to disk."),
    StatMetric("disk_dropped_paths", "counter", "Prompts and turns that could not be written to disk whole."),
    StatMetric("disk_loaded_tokens", "counter", "Prompt tokens whose KV was read from disk."),
    StatMetric("disk_errors", "counter", "Reads and writes of the disk tier that failed."),
    StatMetric("disk_corrupt", "counter", "Files of the disk tier that were torn, corrupt or foreign, and removed."),
)
INDEX_STATES = ("redis", "embedded", "off", "read_only", "connecting", "down")


class StatsCollector(Collector):
    """Reads one snapshot per scrape."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not read the service, which may not be open yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        snapshot = self._stats()
        for metric in STAT_METRICS:
            family = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
            yield family(metric.exposed_name, metric.documentation, value=getattr(snapshot, metric.field))
        states = {state: state == snapshot.index_state for state in INDEX_STATES}
        yield StateSetMetricFamily(PREFIX + "index_state", "State of the Redis trie.", value=states)


class Metrics:
    """The app's metrics. `stats` and `num_in_flight` are read at scrape."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(StatsCollector(stats))
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "Arrival of a request to its first token.", _TTFT_BUCKETS
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Time between consecutive pieces of one choice.", _ITL_BUCKETS
        )
        self.request_queue_time = self._histogram(
            "request_queue_time_seconds", "Time a request waited for the engine.", _TTFT_BUCKETS
        )
        self.request_duration = self._histogram(
            "request_duration_seconds", "Arrival of a request to its end.", _DURATION_BUCKETS
        )
        self.response_store_failures = Counter(
            PREFIX + "response_store_failures",
            "Responses that were to be stored and could not be.",
            registry=self.registry,
        )
        self.requests = Counter(
            PREFIX + "http_requests",
            "Requests under /v1, by final status.",
            ["status"],
            registry=self.registry,
        )

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, documentation, buckets=buckets, registry=self.registry)
