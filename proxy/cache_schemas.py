"""The wire of `/v1/cache`, and of what a reply says about the cache. `docs/cache-api.md` has examples."""

from typing import Final, Literal

from msgspec import Struct

from sessions.cache_control import Totals
from sessions.engine.holdings import Holding
from sessions.reports import Divergence, Explanation, KVLayout, MissClass
from sessions.tiers import TierHolding, TierSize


class DivergencePlace(Struct, frozen=True, kw_only=True):
    """Where a prompt leaves the closest earlier one.

    token: the first that differs, counted from 0. param: where it stands in the request. offset: characters into that.
    before: text that both have before it. now, then: text after it in this prompt, and in the earlier one.
    """

    token: int
    param: str
    offset: int
    before: str
    now: str
    then: str

    @classmethod
    def of(cls, at: Divergence) -> "DivergencePlace":
        return cls(token=at.token, param=at.param, offset=at.offset, before=at.before, now=at.now, then=at.then)


class LostKV(Struct, frozen=True, kw_only=True):
    """What became of the first block that is missing.

    reason: why it went. seconds_ago: when. after_idle_s: after how long without use.
    """

    reason: str
    seconds_ago: float | None = None
    after_idle_s: float | None = None


class Tiers(Struct, frozen=True, kw_only=True):
    """Prompt tokens by where they are.

    pool: where the model computes. host: in memory of the host below it, after those. disk: on disk, after those.
    elsewhere: with another replica, after those.
    """

    pool: int
    host: int
    disk: int
    elsewhere: int


class CacheHit(Struct, frozen=True, kw_only=True, tag_field="type", tag="cache_hit"):
    """All that was known was found."""


class CacheMiss(Struct, frozen=True, kw_only=True, tag_field="type", tag="cache_miss"):
    """Less was found than might have been.

    reason: what the client changed. cache_missed_tokens: that must be computed. comparison_reusable_tokens: that the
    closest earlier prompt, or the one it was to be compared with, has in common with this one.
    """

    reason: Literal["input_changed", "tools_changed", "model_changed", "context_compacted", "reasoning_effort_changed"]
    cache_missed_tokens: int
    comparison_reusable_tokens: int


_REASONS: Final[dict[str, Literal["tools_changed", "model_changed"]]] = {
    "tools_changed": "tools_changed",
    "model_changed": "model_changed",
    "template_changed": "model_changed",
}


class CacheExplanation(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"kind": "class"}):
    """Why a prompt found no more of itself in the cache.

    class: the reason in a word. prompt_tokens: all. tiers: where they are. missed_tokens: that must be computed.
    shared_tokens: in common with the closest earlier prompt. prompt_cache_diagnostics: the same in OpenAI's words.
    divergence: where the two part, if they do. lost: what became of what was stored. advice: what to change, or
    nothing.
    """

    kind: MissClass
    prompt_tokens: int
    tiers: Tiers
    missed_tokens: int
    shared_tokens: int
    prompt_cache_diagnostics: CacheHit | CacheMiss
    divergence: DivergencePlace | None = None
    lost: LostKV | None = None
    advice: str = ""

    @classmethod
    def of(cls, found: Explanation) -> "CacheExplanation":
        miss = CacheMiss(
            reason=_REASONS.get(found.kind, "input_changed"),
            cache_missed_tokens=found.missed_tokens,
            comparison_reusable_tokens=found.shared_tokens,
        )
        at, lost, tiers = found.divergence, None, found.tiers
        if found.lost_to is not None:
            lost = LostKV(
                reason=found.lost_to, seconds_ago=found.lost_seconds_ago, after_idle_s=found.lost_after_idle_s
            )
        return cls(
            kind=found.kind,
            prompt_tokens=found.num_prompt_tokens,
            tiers=Tiers(pool=tiers.pool, host=tiers.host, disk=tiers.disk, elsewhere=tiers.elsewhere),
            missed_tokens=found.missed_tokens,
            shared_tokens=found.shared_tokens,
            prompt_cache_diagnostics=CacheHit() if found.kind == "hit" else miss,
            divergence=None if at is None else DivergencePlace.of(at),
            lost=lost,
            advice=found.advice,
        )


class CacheWarmed(Struct, frozen=True, kw_only=True):
    """object: always the same. prompt_tokens: that are cached now. cached_tokens: that were before.
    cache_write_tokens: that were computed for it.
    """

    object: Literal["cache.warmed"] = "cache.warmed"
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int


class CachePinned(Struct, frozen=True, kw_only=True):
    """object: what was done. tokens: of whole blocks, pinned or no longer."""

    object: Literal["cache.pinned", "cache.unpinned"]
    tokens: int


class CacheDropped(Struct, frozen=True, kw_only=True):
    """object: always the same. tokens: that were forgotten."""

    object: Literal["cache.dropped"] = "cache.dropped"
    tokens: int


class CacheEntry(Struct, frozen=True, kw_only=True):
    """One stored path.

    id: for `DELETE`; null for less than a block. object: always the same. tier: where it is, the
    fastest. tokens: from the root on, below the pool without declared ones. shared_tokens: that other entries have too.
    declared_tokens: leading ones that the operator shares between tenants; they are in no tenant's totals. bytes: that
    its tokens take, without declared ones. age_s: seconds since its last use. hits: how often it was reused; null below
    the pool. ttl_s: seconds until it may go; null where it cannot expire, and below the pool. pinned: never evicted.
    """

    id: str | None
    object: Literal["cache.entry"] = "cache.entry"
    tier: Literal["pool", "host", "disk"]
    tokens: int
    shared_tokens: int
    declared_tokens: int
    bytes: int
    age_s: float
    hits: int | None
    ttl_s: float | None
    pinned: bool

    @classmethod
    def of(cls, held: Holding, bytes_per_token: int) -> "CacheEntry":
        return cls(
            id=None if held.leaf_hash is None else held.leaf_hash.hex(),
            tier="pool",
            tokens=held.num_tokens,
            shared_tokens=held.num_shared_tokens,
            declared_tokens=held.num_declared_tokens,
            bytes=(held.num_tokens - held.num_declared_tokens) * bytes_per_token,
            age_s=round(held.age_s, 3),
            hits=held.num_hits,
            ttl_s=held.ttl_s,
            pinned=held.is_pinned,
        )

    @classmethod
    def below(cls, held: TierHolding) -> "CacheEntry":
        return cls(
            id=held.leaf_hash.hex(),
            tier=held.tier,
            tokens=held.num_tokens,
            shared_tokens=held.num_shared_tokens,
            declared_tokens=0,
            bytes=held.num_bytes,
            age_s=round(held.age_s, 3),
            hits=None,
            ttl_s=None,
            pinned=False,
        )


class CacheEntries(Struct, frozen=True, kw_only=True):
    """data: those in the pool, then those below it alone, tier by tier; the last used first. object: always the same.
    tokens, bytes: in the pool; what paths share is counted once.
    """

    data: list[CacheEntry]
    object: Literal["list"] = "list"
    tokens: int
    bytes: int


class CacheLayer(Struct, frozen=True, kw_only=True):
    """What one layer keeps of a token.

    heads: that read it. kv_heads: that have a K and a V of their own; fewer where heads are grouped. head_dim: numbers
    of one K. value_head_dim: of one V. sliding_window: tokens the layer sees; null is all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    sliding_window: int | None


class CacheLayout(Struct, frozen=True, kw_only=True):
    """How KV is laid out here, and how much the pool takes.

    object: always the same. layers: of the model, in order. dtype: of the numbers. bytes_per_token: K and V of all
    layers. block_size: tokens of a block. bytes_per_block: K and V of all layers. pool_tokens, pool_bytes: room of the
    pool, over all tenants. max_model_len: tokens of one prompt with its reply.
    """

    object: Literal["cache.layout"] = "cache.layout"
    layers: list[CacheLayer]
    dtype: str
    bytes_per_token: int
    block_size: int
    bytes_per_block: int
    pool_tokens: int
    pool_bytes: int
    max_model_len: int

    @classmethod
    def of(cls, layout: KVLayout) -> "CacheLayout":
        block_bytes = layout.block_size * layout.bytes_per_token
        return cls(
            layers=[
                CacheLayer(
                    heads=layer.num_heads,
                    kv_heads=layer.num_kv_heads,
                    head_dim=layer.head_dim,
                    value_head_dim=layer.value_head_dim,
                    sliding_window=layer.sliding_window,
                )
                for layer in layout.layers
            ],
            dtype=layout.dtype,
            bytes_per_token=layout.bytes_per_token,
            block_size=layout.block_size,
            bytes_per_block=block_bytes,
            pool_tokens=layout.num_blocks * layout.block_size,
            pool_bytes=layout.num_blocks * block_bytes,
            max_model_len=layout.max_model_len,
        )


class CacheStats(Struct, frozen=True, kw_only=True):
    """What a tenant has; every block is counted once.

    object: always the same. pool_tokens, pool_bytes: in the pool. pinned_tokens: of these, never evicted.
    budget_bytes: what the pool keeps of it at most; null for no bound.
    host_tokens, host_bytes: in memory of the host below the pool. disk_tokens, disk_bytes: on disk. Both also what is
    in the pool.
    """

    object: Literal["cache.stats"] = "cache.stats"
    pool_tokens: int
    pool_bytes: int
    pinned_tokens: int
    budget_bytes: int | None
    host_tokens: int
    host_bytes: int
    disk_tokens: int
    disk_bytes: int

    @classmethod
    def of(cls, totals: Totals, bytes_per_token: int) -> "CacheStats":
        budget = totals.budget_tokens
        host, disk = (totals.below.get(tier, TierSize()) for tier in ("host", "disk"))
        return cls(
            pool_tokens=totals.pool_tokens,
            pool_bytes=totals.pool_tokens * bytes_per_token,
            pinned_tokens=totals.pinned_tokens,
            budget_bytes=None if budget is None else budget * bytes_per_token,
            host_tokens=host.num_tokens,
            host_bytes=host.num_bytes,
            disk_tokens=disk.num_tokens,
            disk_bytes=disk.num_bytes,
        )
