"""The wire of `/v1/cache`, and of what a reply says about the cache. `docs/cache-api.md` has examples."""

from typing import Literal

from msgspec import Struct

from sessions.engine.holdings import Holding
from sessions.types import Divergence, Explanation, MissClass


class DivergencePlace(Struct, frozen=True, kw_only=True):
    """Where a prompt leaves the closest earlier one. offset: characters of `param`."""

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
    reason: str
    seconds_ago: float | None = None
    after_idle_s: float | None = None


class Tiers(Struct, frozen=True, kw_only=True):
    pool: int
    disk: int
    elsewhere: int


class CacheHit(Struct, frozen=True, kw_only=True, tag_field="type", tag="cache_hit"):
    """OpenAI's `prompt_cache_diagnostics`."""


class CacheMiss(Struct, frozen=True, kw_only=True, tag_field="type", tag="cache_miss"):
    reason: Literal["input_changed", "tools_changed"]
    cache_missed_tokens: int
    comparison_reusable_tokens: int


class CacheExplanation(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"kind": "class"}):
    """Why a prompt found no more of itself in the cache. Counts are tokens of the prompt; tiers: where they are."""

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
            reason="tools_changed" if found.kind == "tools_changed" else "input_changed",
            cache_missed_tokens=found.missed_tokens,
            comparison_reusable_tokens=found.shared_tokens,
        )
        at, lost = found.divergence, None
        if found.lost_to is not None:
            lost = LostKV(
                reason=found.lost_to, seconds_ago=found.lost_seconds_ago, after_idle_s=found.lost_after_idle_s
            )
        return cls(
            kind=found.kind,
            prompt_tokens=found.num_prompt_tokens,
            tiers=Tiers(pool=found.tiers.pool, disk=found.tiers.disk, elsewhere=found.tiers.elsewhere),
            missed_tokens=found.missed_tokens,
            shared_tokens=found.shared_tokens,
            prompt_cache_diagnostics=CacheHit() if found.kind == "hit" else miss,
            divergence=None if at is None else DivergencePlace.of(at),
            lost=lost,
            advice=found.advice,
        )


class CacheWarmed(Struct, frozen=True, kw_only=True):
    """prompt_tokens are cached now; cache_write_tokens of them were computed for it."""

    object: Literal["cache.warmed"] = "cache.warmed"
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int


class CachePinned(Struct, frozen=True, kw_only=True):
    """tokens: of whole blocks, pinned or no longer."""

    object: Literal["cache.pinned", "cache.unpinned"]
    tokens: int


class CacheDropped(Struct, frozen=True, kw_only=True):
    object: Literal["cache.dropped"] = "cache.dropped"
    tokens: int


class CacheEntry(Struct, frozen=True, kw_only=True):
    """One stored path. id: for `DELETE`; null for less than a block. ttl_s: null where it cannot expire.

    declared_tokens: leading ones that the operator shares between tenants; they are in no tenant's totals.
    """

    id: str | None
    object: Literal["cache.entry"] = "cache.entry"
    tier: Literal["pool"] = "pool"
    tokens: int
    shared_tokens: int
    declared_tokens: int
    bytes: int
    age_s: float
    hits: int
    ttl_s: float | None
    pinned: bool

    @classmethod
    def of(cls, held: Holding, bytes_per_token: int) -> "CacheEntry":
        return cls(
            id=None if held.leaf_hash is None else held.leaf_hash.hex(),
            tokens=held.num_tokens,
            shared_tokens=held.num_shared_tokens,
            declared_tokens=held.num_declared_tokens,
            bytes=(held.num_tokens - held.num_declared_tokens) * bytes_per_token,
            age_s=round(held.age_s, 3),
            hits=held.num_hits,
            ttl_s=held.ttl_s,
            pinned=held.is_pinned,
        )


class CacheEntries(Struct, frozen=True, kw_only=True):
    """data: the most recently used first. tokens, bytes: of all, what paths share counted once."""

    data: list[CacheEntry]
    object: Literal["list"] = "list"
    tokens: int
    bytes: int
