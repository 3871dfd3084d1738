"""From options to a running ChatService: model, pool, secret. Slow; logs what it does."""

import asyncio
import contextlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import structlog

from sessions.documents import Keeping
from sessions.engine.config import EngineConfig
from sessions.engine.loop import Runner
from sessions.errors import ModelRefused
from sessions.hashing import RootFields
from sessions.index import IndexSettings
from sessions.model_folder import ModelFolder, config_digest, resolve_model
from sessions.parts import IndexOptions, ServiceParts
from sessions.pool_size import parse_budgets, parse_disk_size, parse_host_memory_size, parse_pool_size
from sessions.reports import LayerKV
from sessions.service import ChatService
from sessions.tiers import TierOptions
from sessions.tokenizer import Tokenizer
from sessions.types import SharedPrompt

if TYPE_CHECKING:
    from sessions.engine.kv_cache import KVCache
    from sessions.engine.loaded import LoadedModel

log = structlog.get_logger(__name__)

AUTO_HOST_SHARE: Final = 0.25
"""Of the free memory of the host, for the KV of a pool on a GPU: the rest is for files, and for others."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What `open_service` needs; field names are those of `proxy.settings.Settings`, which documents them."""

    cache_dir: Path
    model: str = "default"
    served_model_name: str = ""
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    kv_dtype: str = "auto"
    attention: str = "auto"
    num_threads: int = 0
    block_size: int = 16
    pool_size: str = "0.3"
    max_num_batched_tokens: int = 256
    max_num_seqs: int = 64
    max_model_len: int = 0
    max_num_waiting: int = 256
    max_slowdown: float = 2.5
    num_draft_tokens: int = 3
    stable_first: bool = False
    cache_budgets: str = ""
    splice_stripped: bool = False
    reasoning_history: Literal["keep", "drop"] = "keep"
    reply_ttl_s: int = 86_400
    response_ttl_s: int = 2_592_000
    max_stored_responses: int = 10_000
    max_stored_bytes: int = 2_097_152
    index: Literal["auto", "redis", "embedded", "off"] = "auto"
    redis_url: str = ""
    redis_timeout_ms: int = 50
    host_memory_size: str = "auto"
    disk_size: str = "0"
    secret: str = ""
    shared_prompts: tuple[SharedPrompt, ...] = ()


def server_secret(secret: str, cache_dir: Path) -> bytes:
    """The operator's secret, or one drawn once and kept in the cache folder (0600): hashes outlive the process.

    Two processes that start together agree: the file appears whole, by a link that only the first one can make.
    """
    if secret:
        return secret.encode()
    path = cache_dir / "secret"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        draft = cache_dir / f"secret.{os.getpid()}.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_bytes(secrets.token_hex(32).encode())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    return path.read_bytes()


async def open_service(options: ServiceOptions) -> ChatService:
    """Load the model, start engine and index. Raises ModelRefused with the reason. Logs what it does."""
    # On a thread that ends: torch keeps a team of OpenMP threads for each thread that computed, and a second one beside
    # the engine's own halved its speed on two cores.
    with ThreadPoolExecutor(1, "anaphora-load") as loader:
        parts, runner = await asyncio.get_running_loop().run_in_executor(loader, _load, options)
    service = ChatService(parts, runner)
    service.open()
    return service


def _load(options: ServiceOptions) -> tuple[ServiceParts, Runner]:
    """Off the event loop: everything slow. torch is imported here, so that `anaphora --help` need not wait for it."""
    import torch

    from sessions.engine.runner import ModelRunner

    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    folder = resolve_model(options.model, options.cache_dir, log.info)
    tokenizer = Tokenizer.load(folder.path)
    loaded = load_checked_model(options, folder)
    cache = open_pool(options, loaded)
    config = EngineConfig(
        block_size=options.block_size,
        num_blocks=cache.num_blocks,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=min(options.max_num_seqs, options.max_num_batched_tokens),
        max_slowdown=options.max_slowdown,
        max_num_draft_tokens=options.num_draft_tokens,
        max_model_len=min(options.max_model_len or loaded.max_model_len, loaded.max_model_len),
    )
    parts = ServiceParts(
        model_id=options.served_model_name or folder.name,
        tokenizer=tokenizer,
        engine_config=config,
        root_fields=_root_fields(options, folder, loaded, tokenizer),
        secret=server_secret(options.secret, options.cache_dir),
        max_num_waiting=options.max_num_waiting,
        index=_index_options(options),
        stable_first=options.stable_first,
        splice_stripped=options.splice_stripped,
        keeps_reasoning=options.reasoning_history == "keep",
        budgets={
            tenant: max(1, num_bytes // cache.block_bytes)
            for tenant, num_bytes in parse_budgets(options.cache_budgets).items()
        },
        bytes_per_token=cache.block_bytes // cache.block_size,
        kv_layers=tuple(
            LayerKV(kv.num_heads, kv.num_kv_heads, kv.head_dim, kv.value_head_dim, kv.sliding_window)
            for kv in cache.layers
        ),
        kv_dtype=str(cache.dtype).removeprefix("torch."),
        tiers=_tier_options(options, cache),
        shared_prompts=options.shared_prompts,
        max_stored_bytes=options.max_stored_bytes,
    )
    return parts, ModelRunner(loaded, cache)


def load_checked_model(options: ServiceOptions, folder: ModelFolder) -> "LoadedModel":
    """Slow; imports torch. Raises ModelRefused for a model that cannot be served exactly."""
    from sessions.engine.loaded import LoadOptions
    from sessions.engine.loader import load_model
    from sessions.engine.native.kernels import LANES, load_kernels
    from sessions.engine.recall import recall_path

    kernels, reason = load_kernels(options.cache_dir)
    if options.block_size % LANES:
        kernels, reason = None, f"their blocks hold a multiple of {LANES} tokens"
    if kernels is None:
        log.warning("CPU kernels unavailable, plain torch computes instead", reason=reason)
    load_options = LoadOptions(
        options.device, options.dtype, options.quantization, options.kv_dtype, options.attention, options.block_size
    )
    kept = recall_path(options.cache_dir, folder.fingerprint, config_digest(folder.path))
    return load_model(folder.path, load_options, kernels, log.info, kept)


def open_pool(options: ServiceOptions, loaded: "LoadedModel") -> "KVCache":
    """Raises ModelRefused for a pool that does not fit, or that the system does not give."""
    from torch import OutOfMemoryError

    from sessions.engine.kv_cache import bytes_per_token, free_bytes, num_blocks_for

    num_blocks = num_blocks_for(
        parse_pool_size(options.pool_size), loaded.layers, options.block_size, loaded.kv_dtype, loaded.device
    )
    token_bytes = bytes_per_token(loaded.layers, loaded.kv_dtype)
    pool_bytes = num_blocks * options.block_size * token_bytes
    if pool_bytes > free_bytes(loaded.device):
        raise ModelRefused(
            f"a KV pool of {pool_bytes / 2**30:.1f} GiB does not fit: "
            f"{free_bytes(loaded.device) / 2**30:.1f} GiB are free"
        )
    log.info(
        "KV pool ready",
        tokens=num_blocks * options.block_size,
        blocks=num_blocks,
        kib_per_token=token_bytes / 1024,
        attention=loaded.attention,
    )
    try:
        return loaded.open_pool(num_blocks, options.block_size)
    except (MemoryError, OutOfMemoryError):  # a limit that `free_bytes` does not see: ulimit -v, no overcommitment
        raise ModelRefused(
            f"a KV pool of {pool_bytes / 2**30:.1f} GiB cannot be had: the system refuses this process the memory"
        ) from None


def _index_options(options: ServiceOptions) -> IndexOptions:
    """What is on disk is of use to a conversation whose replies are known: then an embedded Redis keeps its data."""
    data = options.cache_dir / "redis" if parse_disk_size(options.disk_size) else None
    keeping = Keeping(options.response_ttl_s, options.max_stored_responses) if options.response_ttl_s else None
    forgetting = options.cache_dir / "forgetting"
    client = IndexSettings(reply_ttl_s=options.reply_ttl_s, keeping=keeping, forgetting=forgetting)
    return IndexOptions(options.index, options.redis_url, options.redis_timeout_ms, client, data)


def _tier_options(options: ServiceOptions, cache: "KVCache") -> TierOptions:
    """By itself, memory of the host is a tier where the pool is not in it. Raises ModelRefused if that does not fit."""
    from sessions.engine.kv_cache import free_host_bytes

    host_bytes, free = parse_host_memory_size(options.host_memory_size), free_host_bytes()
    if host_bytes is None:
        host_bytes = int(AUTO_HOST_SHARE * free) if cache.device.type == "cuda" else 0
    if host_bytes > free:
        raise ModelRefused(
            f"a tier of {host_bytes / 2**30:.1f} GiB in host memory does not fit: {free / 2**30:.1f} GiB are free"
        )
    return TierOptions(cache, host_bytes, parse_disk_size(options.disk_size), options.cache_dir / "kv")


def _root_fields(
    options: ServiceOptions, folder: ModelFolder, loaded: "LoadedModel", tokenizer: Tokenizer
) -> RootFields:
    return RootFields(
        block_size=options.block_size,
        weights=folder.fingerprint,
        model_config=config_digest(folder.path),
        weight_quantisation=loaded.quantization,
        compute_dtype=str(loaded.dtype),
        kv_dtype=str(loaded.kv_dtype),
        numerics=loaded.numerics,
        tokenizer=tokenizer.digest,
        template=tokenizer.template_digest,
    )
