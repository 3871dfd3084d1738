"""The numbers of the index client, and its kind of connection. Frozen; no thread, no call at import."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from sessions.documents import Keeping

OLDEST_REDIS = (6, 2)
"""GETEX came with 6.2. Valkey calls itself Redis 7.2.4 here."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Seconds unless the name says otherwise.

    timeout_s: budget of one call to Redis, and of a lookup as its caller sees it.
    beat_s, lease_s: a lease outlives two lost beats.
    resync_s: anti-entropy; also renews what would expire, so it stays below `ttl_s`.
    breaker_failures, breaker_open_s: so many failures in a row, and for so long the server is left alone.
    cut_delay_s: evictions wait so long, to be told as one cut per branch.
    keeping, documents_timeout_s: of what is stored beside the trie (None: nothing is), and budget of one call about it.
    reply_ttl_s: so long Redis keeps the ids of a reply; 0: it never sees them.
    max_chains, max_evictions: bounds of what waits while Redis is away.
    forgetting: folder that keeps, over a restart, what is still to be forgotten there; None: nothing does.
    """

    timeout_s: float = 0.05
    beat_s: float = 1.5
    lease_s: float = 5.0
    ttl_s: int = 6 * 3600
    resync_s: float = 600.0
    breaker_failures: int = 3
    breaker_open_s: float = 0.5
    cut_delay_s: float = 0.25
    keeping: Keeping | None = field(default_factory=Keeping)
    documents_timeout_s: float = 1.0
    reply_ttl_s: int = 86_400
    max_chains: int = 500
    max_evictions: int = 65_536
    forgetting: Path | None = None

    def __post_init__(self) -> None:
        if self.lease_s <= self.beat_s:
            raise ValueError(f"lease_s ({self.lease_s}) must exceed beat_s ({self.beat_s})")
        if self.ttl_s <= self.resync_s:
            raise ValueError(f"ttl_s ({self.ttl_s}) must exceed resync_s ({self.resync_s})")


def connect(url: str, timeout_s: float) -> redis.Redis:
    """A client for one thread; nothing is sent yet. `url`: redis://, rediss:// or unix://. Raises ValueError.

    No retry: redis-py's default of ten attempts turns a refused port into seconds. RESP2 and no driver info:
    a new connection costs no round trip beyond AUTH and SELECT.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )


def is_supported(client: redis.Redis) -> bool:
    """Whether the server is Redis >= 6.2 or its like, or hides it (ACL). Raises as redis-py does."""
    try:
        server: Any = client.info("server")
    except NoPermissionError:
        return True
    version = re.match(r"(\d+)\.(\d+)", str(server.get("redis_version", "")))
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_REDIS
