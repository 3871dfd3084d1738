"""Keeping: what a request's cache options and breakpoints ask of the pool. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sessions.engine.retention import Retention
from sessions.types import Breakpoint, CacheOptions

MAX_READ_BREAKPOINTS: Final = 80
"""The latest so many breakpoints are looked for, https://platform.openai.com/docs/guides/prompt-caching"""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a request asks of the pool; see `Request`."""

    retention: Retention
    retentions: tuple[tuple[int, Retention], ...]
    read_points: tuple[int, ...] | None
    write_limit: int | None


def keeping_of(asked: CacheOptions, breakpoints: Sequence[tuple[int, Breakpoint]]) -> Keeping:
    """In explicit mode all is read and written at breakpoints: nothing without any."""
    retentions = tuple((count, Retention(point.ttl_s)) for count, point in breakpoints if point.ttl_s is not None)
    counts = tuple(sorted({count for count, _ in breakpoints}))
    if not asked.is_explicit:
        return Keeping(Retention(asked.ttl_s, asked.priority), retentions, None, None)
    ttl = () if asked.ttl_s is None else tuple((count, Retention(asked.ttl_s)) for count in counts)
    return Keeping(
        Retention(None, asked.priority), (*retentions, *ttl), counts[-MAX_READ_BREAKPOINTS:], max(counts, default=0)
    )
