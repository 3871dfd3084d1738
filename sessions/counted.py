"""The snapshot of gauges and counters that `/metrics` shows, from those who count. Any thread; reads only."""

from sessions.engine.loop import Engine
from sessions.lower_tiers import LowerTiers
from sessions.reports import Stats
from sessions.tiers import TierStats


def counted(engine: Engine, num_waiting: int, lower: LowerTiers) -> Stats:
    """num_waiting: choices that were never run."""
    index, tiers = lower.index.stats(), lower.tiers.stats()
    host, disk = tiers.get("host", TierStats()), tiers.get("disk", TierStats())
    scheduler, pool = engine.scheduler, engine.scheduler.pool
    return Stats(
        num_requests_running=len(scheduler.running),
        num_requests_waiting=num_waiting + scheduler.num_preempted,
        kv_cache_usage=1 - pool.num_free_blocks / len(pool.blocks),
        kv_cache_cached=pool.num_cached_blocks / len(pool.blocks),
        prefix_cache_queries=scheduler.num_prompt_tokens,
        prefix_cache_hits=scheduler.num_cached_tokens,
        prompt_tokens=scheduler.num_prompt_tokens,
        generation_tokens=scheduler.num_generated_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_forced_tokens=scheduler.drafter.num_forced_tokens,
        num_draft_tokens=scheduler.drafter.num_draft_tokens,
        num_accepted_tokens=scheduler.drafter.num_accepted_tokens,
        num_evicted_blocks=pool.num_evicted_blocks,
        num_steps=engine.num_steps,
        index_state=index.state,
        index_errors=index.errors,
        index_lookups=index.lookups,
        index_resyncs=index.resyncs,
        index_dropped=index.dropped,
        index_elsewhere_tokens=lower.num_elsewhere_tokens,
        host_blocks=host.blocks,
        host_bytes=host.bytes,
        host_written_blocks=host.written_blocks,
        host_dropped_paths=host.dropped_paths,
        host_loaded_tokens=host.loaded_tokens,
        host_errors=host.errors,
        disk_blocks=disk.blocks,
        disk_bytes=disk.bytes,
        disk_written_blocks=disk.written_blocks,
        disk_dropped_paths=disk.dropped_paths,
        disk_loaded_tokens=disk.loaded_tokens,
        disk_errors=disk.errors,
        disk_corrupt=disk.corrupt,
    )
