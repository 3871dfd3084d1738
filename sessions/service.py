"""ChatService: a chat request in, a Generation out. The only door between `proxy` and conversations.

    start: render ▸ encode ▸ chain of block hashes ▸ (Redis, when it can know more) ▸ one engine request per choice
    outputs: engine thread ──one call_soon_threadsafe per step──▶ Generation ▸ TextStream ▸ Delta

Everything here runs on the event loop, but `_deliver` and the resync source, which say which thread is theirs.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import structlog

from sessions.detokenizer import TextStream
from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.loop import Engine, Runner, StepResult
from sessions.engine.request import Request, RequestOutput
from sessions.engine.scheduler import Scheduler
from sessions.errors import ContextLengthExceeded, Draining, EngineFailed, InvalidRequest, Overloaded
from sessions.hashing import HashChain, RootFields, root_hash, tenant_key
from sessions.index import IndexSettings, PrefixIndex, open_index
from sessions.pool_size import parse_pool_size
from sessions.render import render
from sessions.tokenizer import Tokenizer
from sessions.types import (
    BlockHash,
    ChatRequest,
    Delta,
    FinishReason,
    Readiness,
    RequestId,
    SamplingParams,
    Stats,
    TokenId,
    Usage,
)

log = structlog.get_logger(__name__)

CALL_TIMEOUT_S = 10.0
"""How long the index thread waits for the engine to answer between two steps."""

LONG_PROMPT_CHARACTERS = 20_000
"""Prompts past this are rendered and encoded off the event loop."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """What `open_service` needs; field names are those of `proxy.settings.Settings`, which documents them."""

    cache_dir: Path
    model: str = "default"
    served_model_name: str = ""
    device: str = "auto"
    dtype: str = "auto"
    num_threads: int = 0
    block_size: int = 16
    pool_size: str = "0.3"
    max_num_batched_tokens: int = 256
    max_num_seqs: int = 64
    max_model_len: int = 0
    max_num_waiting: int = 256
    index: Literal["auto", "redis", "embedded", "off"] = "auto"
    redis_url: str = ""
    redis_timeout_ms: int = 50
    secret: str = ""


@dataclass(slots=True)
class Timings:
    """Seconds from arrival; None until it happened."""

    queue_time_s: float | None = None
    time_to_first_token_s: float | None = None


@dataclass(slots=True)
class _Choice:
    index: int
    stream: TextStream
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Which Redis, if any, and for how long it may be waited for."""

    mode: Literal["auto", "redis", "embedded", "off"] = "off"
    redis_url: str = ""
    timeout_ms: int = 50


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a ChatService is put together from."""

    model_id: str
    tokenizer: Tokenizer
    engine_config: EngineConfig
    root_fields: RootFields
    secret: bytes
    max_num_waiting: int
    index: IndexOptions = field(default_factory=IndexOptions)


class Generation:
    """The reply to one chat request: an async iterator of Delta over all its choices. Event loop only.

    Iterating raises EngineFailed if the engine loses the request. `close()` is synchronous and idempotent: it aborts
    what still runs and frees its blocks within a step.
    """

    def __init__(
        self,
        generation_id: str,
        num_prompt_tokens: int,
        choices: dict[RequestId, _Choice],
        abort: Callable[[RequestId], None],
        forget: Callable[[Sequence[RequestId]], None],
    ) -> None:
        self.id = generation_id
        self.timings = Timings()
        self._num_prompt_tokens = num_prompt_tokens
        self._choices = choices
        self._abort = abort
        self._forget = forget
        self._arrived_at = time.monotonic()
        self._deltas: deque[Delta] = deque()
        self._ready = asyncio.Event()
        self._error: str | None = None
        self._num_cached: int | None = None
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Delta]:
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._deltas:
                yield self._deltas.popleft()
            if self._error is not None:
                raise EngineFailed(self._error)
            if self._is_closed or all(choice.is_finished for choice in self._choices.values()):
                return

    def usage(self) -> Usage:
        """Final once iteration ended; prompt counts are known from the first delta on."""
        cached = self._num_cached or 0
        computed = self._num_prompt_tokens - cached if self._num_cached is not None else 0
        completion = sum(choice.stream.num_tokens_used for choice in self._choices.values())
        return Usage(self._num_prompt_tokens, completion, cached, computed)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for request_id, choice in self._choices.items():
            if not choice.is_finished:
                self._abort(request_id)
        self._forget(list(self._choices))
        self._ready.set()

    def receive(self, output: RequestOutput) -> None:
        """One step's output for one choice; called by the service."""
        choice = self._choices[output.request_id]
        if choice.is_finished or self._is_closed:
            return
        if output.error is not None:
            self._error = output.error
            self._ready.set()
            return
        if self._num_cached is None:
            # The first choice's prompt; its forks find all of it in the pool.
            self._num_cached = output.num_cached_tokens
            self.timings.time_to_first_token_s = time.monotonic() - self._arrived_at
            if output.admitted_at is not None:
                self.timings.queue_time_s = output.admitted_at - self._arrived_at
        self._push(choice, output)
        self._ready.set()

    def _push(self, choice: _Choice, output: RequestOutput) -> None:
        text = choice.stream.decode(output.token_ids)
        finish_reason: FinishReason | None = output.finish_reason
        if choice.stream.stopped:
            if finish_reason is None:
                self._abort(output.request_id)
            finish_reason = "stop"
        elif finish_reason is not None:
            text += choice.stream.flush()
            # A stop string may be complete only in the tail that was held back.
            finish_reason = "stop" if choice.stream.stopped else finish_reason
        choice.is_finished = finish_reason is not None
        if text or finish_reason:
            self._deltas.append(Delta(choice.index, text, finish_reason))


class ChatService:
    """One model, one engine, one index. Made by `open_service` (or `ChatService(parts, runner)` in tests)."""

    def __init__(self, parts: ServiceParts, runner: Runner) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts = parts
        self._config = parts.engine_config
        self._pool = BlockPool(self._config.num_blocks, self._config.block_size)
        self._scheduler = Scheduler(self._config, self._pool)
        self.engine = Engine(self._scheduler, runner, self._deliver)
        self._generations: dict[RequestId, Generation] = {}
        self._draining = False
        self._num_elsewhere_tokens = 0
        self.model_id = parts.model_id
        self.created = int(_wall_clock_s())
        self.max_model_len = min(self._config.max_model_len, self._config.pool_tokens)
        self.vocab_size = parts.tokenizer.vocab_size
        fleet = root_hash(parts.root_fields, tenant_key(parts.secret, "", None))
        self.index: PrefixIndex = open_index(
            parts.index.mode,
            parts.index.redis_url or None,
            fleet=fleet,
            resync_source=self._leaf_chains,
            settings=replace(IndexSettings(), timeout_s=parts.index.timeout_ms / 1000),
        )

    # -- requests --

    async def start(self, request: ChatRequest) -> Generation:
        """Accept a request. Raises InvalidRequest, ContextLengthExceeded, Overloaded, Draining, EngineFailed."""
        self._refuse_if_unable(request.n)
        token_ids = await self._encode(request)
        if len(token_ids) >= self.max_model_len:
            raise ContextLengthExceeded(num_prompt_tokens=len(token_ids), max_model_len=self.max_model_len)
        root = root_hash(self._parts.root_fields, tenant_key(self._parts.secret, request.tenant.id, request.cache_salt))
        chain = HashChain(root, self._config.block_size)
        chain.extend(token_ids)
        await self._ask_index(root, chain.hashes)
        self._refuse_if_unable(request.n)
        return self._submit(request, token_ids, chain)

    def _refuse_if_unable(self, num_choices: int) -> None:
        if self._draining:
            raise Draining
        if not self.engine.is_alive:
            raise EngineFailed("The engine is not running.")
        bound = self._parts.max_num_waiting
        if bound and len(self._generations) + num_choices > bound + self._config.max_num_seqs:
            raise Overloaded("Too many requests are waiting; try again later.", retry_after_s=1.0)

    async def _encode(self, request: ChatRequest) -> list[TokenId]:
        scope = request.tenant.id + "\0" + (request.cache_salt or "")

        def encode() -> list[TokenId]:
            prompt = render(request.messages, request.tools, self._parts.tokenizer.template)
            return self._parts.tokenizer.encode(prompt, scope=scope)

        if sum(len(message.content) for message in request.messages) > LONG_PROMPT_CHARACTERS:
            token_ids = await asyncio.to_thread(encode)
        else:
            token_ids = encode()
        if not token_ids:
            raise InvalidRequest("The messages render to an empty prompt.", param="messages")
        return token_ids

    async def _ask_index(self, root: BlockHash, hashes: Sequence[BlockHash]) -> None:
        """Redis, only where it can know more than the pool: a live peer exists and the pool misses some of it."""
        num_local = self._pool.num_cached_prefix_blocks(hashes)
        if num_local == len(hashes) or not self.index.should_ask():
            return
        lookup = await self.index.lookup(root, hashes)
        if lookup is not None:
            self._num_elsewhere_tokens += max(0, lookup.num_other_blocks - num_local) * self._config.block_size

    def _submit(self, request: ChatRequest, token_ids: list[TokenId], chain: HashChain) -> Generation:
        generation_id = f"chatcmpl-{secrets.token_hex(12)}"
        seed = request.params.seed if request.params.seed is not None else secrets.randbits(63)
        engine_requests = [
            self._engine_request(request.params, RequestId(f"{generation_id}/{index}"), token_ids, chain, seed, index)
            for index in range(request.n)
        ]
        choices = {
            engine_request.id: _Choice(index, TextStream(self._parts.tokenizer.decode, request.params.stop))
            for index, engine_request in enumerate(engine_requests)
        }
        generation = Generation(generation_id, len(token_ids), choices, self.engine.abort, self._forget)
        for engine_request in engine_requests:
            self._generations[engine_request.id] = generation
            self.engine.submit(engine_request)
        return generation

    def _engine_request(
        self,
        params: SamplingParams,
        request_id: RequestId,
        token_ids: list[TokenId],
        chain: HashChain,
        seed: int,
        index: int,
    ) -> Request:
        own_chain = HashChain(chain.root, chain.block_size)
        own_chain.extend(token_ids)
        room = self.max_model_len - len(token_ids)
        return Request(
            id=request_id,
            token_ids=list(token_ids),
            chain=own_chain,
            params=params,
            max_tokens=min(params.max_tokens or room, room),
            eos_token_ids=frozenset(self._parts.tokenizer.eos_token_ids),
            seed=_choice_seed(seed, index),
        )

    def _forget(self, request_ids: Sequence[RequestId]) -> None:
        for request_id in request_ids:
            self._generations.pop(request_id, None)

    # -- engine thread --

    def _deliver(self, result: StepResult) -> None:
        """Engine thread: cross to the event loop once per step."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, result)

    def _leaf_chains(self) -> list[tuple[BlockHash, list[BlockHash]]]:
        """Index thread: the pool's chains, read between two steps."""
        return self.engine.call(lambda: list(self._pool.leaf_chains())).result(CALL_TIMEOUT_S)

    def _dispatch(self, result: StepResult) -> None:
        for output in result.outputs:
            generation = self._generations.get(output.request_id)
            if output.stored and generation is not None:
                self.index.publish(output.root, output.stored)
            if generation is not None:
                generation.receive(output)
        if result.removed:
            self.index.evicted([removed.block_hash for removed in result.removed])

    # -- state --

    def stats(self) -> Stats:
        index = self.index.stats()
        pool, scheduler = self._pool, self._scheduler
        return Stats(
            num_requests_running=len(scheduler.running),
            num_requests_waiting=len(scheduler.waiting),
            kv_cache_usage=1 - pool.num_free_blocks / len(pool.blocks),
            kv_cache_cached=pool.num_cached_blocks / len(pool.blocks),
            prefix_cache_queries=scheduler.num_prompt_tokens,
            prefix_cache_hits=scheduler.num_cached_tokens,
            prompt_tokens=scheduler.num_prompt_tokens,
            generation_tokens=scheduler.num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_evicted_blocks=pool.num_evicted_blocks,
            num_steps=self.engine.num_steps,
            index_state=index.state,
            index_errors=index.errors,
            index_lookups=index.lookups,
            index_resyncs=index.resyncs,
            index_dropped=index.dropped,
        )

    def readiness(self) -> Readiness:
        alive = self.engine.is_alive
        return Readiness(
            ready=alive and not self._draining,
            model_loaded=True,
            engine_alive=alive,
            draining=self._draining,
            index=self.index.state,
        )

    def open(self) -> None:
        """Start the engine thread and the index."""
        self.engine.start()
        self.index.start()

    def begin_drain(self) -> None:
        """Refuse new requests; what runs goes on. Safe in a signal handler."""
        self._draining = True

    async def close(self) -> None:
        """Abort what is left, stop the index and the engine thread."""
        self._draining = True
        for generation in set(self._generations.values()):
            generation.close()
        await asyncio.to_thread(self.index.stop, 1.0)
        await asyncio.to_thread(self.engine.stop, CALL_TIMEOUT_S)


def _choice_seed(seed: int, index: int) -> int:
    """A choice's own 64-bit signed seed; choice 0 has the caller's."""
    mixed = (seed + index * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def _wall_clock_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def server_secret(secret: str, cache_dir: Path) -> bytes:
    """The operator's secret, or one drawn once and kept in the cache folder (0600): hashes outlive the process."""
    if secret:
        return secret.encode()
    path = cache_dir / "secret"
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    drawn = secrets.token_hex(32).encode()
    path.touch(mode=0o600, exist_ok=True)
    if not path.stat().st_size:
        path.write_bytes(drawn)
    return path.read_bytes()


async def open_service(options: ServiceOptions) -> ChatService:
    """Load the model, start engine and index. Raises ModelRefused with the reason. Logs what it does."""
    parts, runner = await asyncio.to_thread(_load, options)
    service = ChatService(parts, runner)
    service.open()
    return service


def _load(options: ServiceOptions) -> tuple[ServiceParts, Runner]:
    """Off the event loop: everything slow. torch is imported here, so that `anaphora --help` need not wait for it."""
    import torch

    from sessions.engine.kv_cache import KVCache, bytes_per_token, num_blocks_for
    from sessions.engine.runner import ModelRunner, load_model
    from sessions.model_folder import config_digest, resolve_model

    def report(sentence: str) -> None:
        log.info(sentence)

    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    folder = resolve_model(options.model, options.cache_dir, report)
    tokenizer = Tokenizer.load(folder.path)
    loaded = load_model(folder.path, options.device, options.dtype, report)
    num_blocks = num_blocks_for(
        parse_pool_size(options.pool_size), loaded.layers, options.block_size, loaded.dtype, loaded.device
    )
    cache = KVCache(loaded.layers, num_blocks, options.block_size, loaded.dtype, loaded.device)
    config = EngineConfig(
        block_size=options.block_size,
        num_blocks=num_blocks,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=min(options.max_num_seqs, options.max_num_batched_tokens),
        max_model_len=min(options.max_model_len or loaded.max_model_len, loaded.max_model_len),
    )
    log.info(
        "KV pool ready",
        tokens=config.pool_tokens,
        blocks=num_blocks,
        kib_per_token=bytes_per_token(loaded.layers, loaded.dtype) / 1024,
    )
    fields = RootFields(
        block_size=options.block_size,
        weights=folder.fingerprint,
        model_config=config_digest(folder.path),
        weight_quantisation="none",
        compute_dtype=str(loaded.dtype),
        kv_dtype=str(loaded.dtype),
        numerics=f"{loaded.device.type}/sdpa",
        tokenizer=tokenizer.digest,
        template=tokenizer.template_digest,
    )
    parts = ServiceParts(
        model_id=options.served_model_name or folder.name,
        tokenizer=tokenizer,
        engine_config=config,
        root_fields=fields,
        secret=server_secret(options.secret, options.cache_dir),
        max_num_waiting=options.max_num_waiting,
        index=IndexOptions(options.index, options.redis_url, options.redis_timeout_ms),
    )
    return parts, ModelRunner(loaded, cache)
