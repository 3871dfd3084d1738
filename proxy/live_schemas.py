"""The wire of `/v1/cache/live`: pool, pace and a tenant's tree at one moment. `docs/cache-api.md` has an example."""

from typing import Literal

from msgspec import Struct

from sessions.engine.runs import Run
from sessions.picture import Picture
from sessions.reports import Stats


class LivePool(Struct, frozen=True, kw_only=True):
    """The KV pool, over all tenants.

    tokens: that it has room for. held, cached: shares, 0 to 1, that running requests hold, and that may be reused.
    evicted_blocks: so far. host_bytes, disk_bytes: of KV in memory of the host below the pool, and on disk.
    """

    tokens: int
    held: float
    cached: float
    evicted_blocks: int
    host_bytes: int
    disk_bytes: int


class LiveLatency(Struct, frozen=True, kw_only=True):
    """Seconds, interpolated in the buckets of the histogram that `/metrics` shows.

    p50, p95, p99: percentiles. count: of observations.
    """

    p50: float
    p95: float
    p99: float
    count: int


class LiveWindow(Struct, frozen=True, kw_only=True):
    """What the last seconds were like, over all tenants.

    seconds: their number; more than a minute if nobody has looked for longer. prompt_tokens: looked up.
    cached_tokens: of them, found. generated_tokens: said. ttft, itl: times to first token, and between two pieces;
    null without any.
    """

    seconds: float
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft: LiveLatency | None
    itl: LiveLatency | None


class TreeNode(Struct, frozen=True, kw_only=True):
    """Stored blocks that follow each other without a branch.

    id: names it in the next picture too. parent: `id` of the node that it follows; null after a root. tier: where it
    is, the fastest. start: tokens before it, so that one below the pool may begin in the middle of its parent; after a
    root, those that the operator shares between tenants. tokens: its own.
    running: requests that hold it now. paths: stored paths that go through it. hits: later requests whose match ended
    in it. age_s: since its last use; 0 while held. pinned: never evicted. left_out: branches after it not shown.
    """

    id: str
    parent: str | None
    tier: Literal["pool", "host", "disk"]
    start: int
    tokens: int
    running: int
    paths: int
    hits: int
    age_s: float
    pinned: bool
    left_out: int


class Tree(Struct, frozen=True, kw_only=True):
    """What a tenant has, the last used first; every node after the one that it follows.

    nodes: at most as many as asked for. left_out: first branches that are not shown, with all that follows them.
    """

    nodes: list[TreeNode]
    left_out: int

    @classmethod
    def of(cls, picture: Picture) -> "Tree":
        ids: list[str] = []
        nodes = []
        for at, run in enumerate(picture.runs):
            parent = None if run.parent is None else ids[run.parent]
            ids.append(run.hashes[0].hex() if run.hashes else _tail_id(parent or "", ids))
            nodes.append(_node(run, ids[at], parent, picture.tiers[at]))
        return cls(nodes=nodes, left_out=picture.num_left_out)


class CacheLive(Struct, frozen=True, kw_only=True):
    """One moment of the cache.

    object: always the same. model: served here. running, waiting: requests, over all tenants. pool: over all tenants.
    window: the last seconds. tree: the caller's own.
    """

    object: Literal["cache.live"] = "cache.live"
    model: str
    running: int
    waiting: int
    pool: LivePool
    window: LiveWindow
    tree: Tree

    @classmethod
    def of(cls, model: str, num_pool_tokens: int, stats: Stats, window: LiveWindow, picture: Picture) -> "CacheLive":
        return cls(
            model=model,
            running=stats.num_requests_running,
            waiting=stats.num_requests_waiting,
            pool=LivePool(
                tokens=num_pool_tokens,
                held=stats.kv_cache_usage,
                cached=stats.kv_cache_cached,
                evicted_blocks=stats.num_evicted_blocks,
                host_bytes=stats.host_bytes,
                disk_bytes=stats.disk_bytes,
            ),
            window=window,
            tree=Tree.of(picture),
        )


def _tail_id(before: str, taken: list[str]) -> str:
    """Less than a block has no hash: it is named by what it follows, and counted."""
    stem = f"{before}."
    return f"{stem}{sum(other.startswith(stem) for other in taken)}"


def _node(run: Run, node_id: str, parent: str | None, tier: Literal["pool", "host", "disk"]) -> TreeNode:
    return TreeNode(
        id=node_id,
        parent=parent,
        tier=tier,
        start=run.start,
        tokens=run.num_tokens,
        running=run.ref_count,
        paths=run.num_paths,
        hits=run.num_hits,
        age_s=round(run.age_s, 1),
        pinned=run.is_pinned,
        left_out=run.num_left_out,
    )
