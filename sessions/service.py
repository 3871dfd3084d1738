"""ChatService: a chat request in, a Generation out. The only door between `proxy` and conversations.

    start: render ▸ encode ▸ chain of block hashes ▸ (Redis, when it can know more) ▸ one engine request per choice
    outputs: engine thread ──one call_soon_threadsafe per step──▶ Generation ▸ TextStream ▸ Delta

Everything here runs on the event loop, but `_deliver` and the resync source, which say which thread is theirs.
"""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain as chained
from typing import Any, Literal

from sessions.admission import Admission
from sessions.detokenizer import StopStrings, TextStream
from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.loop import Engine, Runner, StepResult
from sessions.engine.request import Request
from sessions.engine.scheduler import Scheduler
from sessions.errors import ContextLengthExceeded, Draining, EngineFailed, InvalidRequest
from sessions.generation import Choice, Generation
from sessions.hashing import HashChain, RootFields, root_hash, tenant_key
from sessions.index import IndexSettings, PrefixIndex, open_index
from sessions.render import render
from sessions.tokenizer import Tokenizer
from sessions.types import BlockHash, ChatRequest, Readiness, RequestId, Stats, TokenId

CALL_TIMEOUT_S = 10.0
"""How long the index thread waits for the engine to answer between two steps."""

CHARACTERS_PER_TOKEN = 8
"""More than a token has in any text worth predicting: what is past it could never be reached."""

LONG_PROMPT_CHARACTERS = 20_000
"""Prompts past this are rendered and encoded off the event loop."""

MARKUP_CHARACTERS = 16
"""What a string costs in a prompt besides its own characters: 340,000 empty messages are a long prompt too."""


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """Which Redis, if any, and for how long it may be waited for.

    client: the index client's other numbers; its `timeout_s` is `timeout_ms`.
    """

    mode: Literal["auto", "redis", "embedded", "off"] = "off"
    redis_url: str = ""
    timeout_ms: int = 50
    client: IndexSettings = field(default_factory=IndexSettings)


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
    stable_first: bool = False


class ChatService:
    """One model, one engine, one index. Made by `startup.open_service`."""

    def __init__(self, parts: ServiceParts, runner: Runner) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts = parts
        self._config = parts.engine_config
        self._pool = BlockPool(self._config.num_blocks, self._config.block_size)
        self._scheduler = Scheduler(self._config, self._pool)
        self.engine = Engine(self._scheduler, runner, self._deliver)
        self._admission = Admission(parts.max_num_waiting)
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
            settings=replace(parts.index.client, timeout_s=parts.index.timeout_ms / 1000),
        )

    # -- requests --

    async def start(self, request: ChatRequest) -> Generation:
        """Accept a request. Raises InvalidRequest, ContextLengthExceeded, Overloaded, Draining, EngineFailed."""
        self._refuse_if_unable(request.n)
        token_ids, prediction = await self._encode(request)
        root = root_hash(self._parts.root_fields, tenant_key(self._parts.secret, request.tenant.id, request.cache_salt))
        chain = HashChain(root, self._config.block_size)
        chain.extend(token_ids)
        await self._ask_index(root, chain.hashes)
        self._refuse_if_unable(request.n)
        return self._submit(request, token_ids, prediction, chain)

    def _refuse_if_unable(self, num_choices: int) -> None:
        if self._draining:
            raise Draining
        if not self.engine.is_alive:
            raise EngineFailed("The engine is not running.")
        self._admission.admit(num_choices)

    async def _encode(self, request: ChatRequest) -> tuple[list[TokenId], tuple[TokenId, ...]]:
        """The ids of the prompt and of the prediction. A message is a token at the least: its template's."""
        if len(request.messages) >= self.max_model_len:
            raise ContextLengthExceeded(
                num_prompt_tokens=len(request.messages), max_model_len=self.max_model_len, is_lower_bound=True
            )

        def encode() -> tuple[list[TokenId], tuple[TokenId, ...]]:
            prompt = render(
                request.messages,
                request.tools,
                self._parts.tokenizer.template,
                stable_first=self._parts.stable_first,
            )
            scope = _scope(request)
            token_ids = self._parts.tokenizer.encode(prompt, scope=scope, max_model_len=self.max_model_len)
            predicted = request.prediction[: CHARACTERS_PER_TOKEN * self.max_model_len]
            return token_ids, tuple(self._parts.tokenizer.encode_text(predicted, scope=scope))

        token_ids, prediction = await asyncio.to_thread(encode) if _is_long(request) else encode()
        if not token_ids:
            raise InvalidRequest("The messages render to an empty prompt.", param="messages")
        return token_ids, prediction

    async def _ask_index(self, root: BlockHash, hashes: Sequence[BlockHash]) -> None:
        """Redis, only where it can know more than the pool: a live peer exists and the pool misses some of it."""
        num_local = self._pool.num_cached_prefix_blocks(hashes)
        if num_local == len(hashes) or not self.index.should_ask():
            return
        lookup = await self.index.lookup(root, hashes)
        if lookup is not None:
            self._num_elsewhere_tokens += max(0, lookup.num_other_blocks - num_local) * self._config.block_size

    def _submit(
        self, request: ChatRequest, token_ids: list[TokenId], prediction: tuple[TokenId, ...], chain: HashChain
    ) -> Generation:
        generation_id = f"chatcmpl-{secrets.token_hex(12)}"
        seed = request.params.seed if request.params.seed is not None else secrets.randbits(63)
        room = self.max_model_len - len(token_ids)
        engine_requests = [
            Request(
                id=RequestId(f"{generation_id}/{index}"),
                token_ids=list(token_ids),
                chain=chain.fork(),
                params=request.params,
                max_tokens=min(request.params.max_tokens or room, room),
                eos_token_ids=self._parts.tokenizer.eos_token_ids,
                seed=_choice_seed(seed, index),
                prediction=prediction,
            )
            for index in range(request.n)
        ]
        tokenizer, stops = self._parts.tokenizer, StopStrings(request.params.stop)
        choices = {
            engine_request.id: Choice(index, TextStream(tokenizer.decode, stops, tokenizer.code_point_endings))
            for index, engine_request in enumerate(engine_requests)
        }
        generation = Generation(generation_id, len(token_ids), choices, self.engine.abort, self._forget)
        self._admission.submitted(engine_requests)
        for engine_request in engine_requests:
            self._generations[engine_request.id] = generation
            self.engine.submit(engine_request)
        return generation

    def _forget(self, request_ids: Sequence[RequestId]) -> None:
        self._admission.ended(request_ids)
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
        self._admission.settle()
        if result.removed:  # first: evicted when the step was planned, and perhaps stored anew when it was committed
            self.index.evicted(result.removed)
        for output in result.outputs:
            generation = self._generations.get(output.request_id)
            if output.stored:
                self.index.publish(output.root, output.stored)
            if generation is not None:
                generation.receive(output)

    # -- state --

    def stats(self) -> Stats:
        index = self.index.stats()
        pool, scheduler = self._pool, self._scheduler
        self._admission.settle()
        return Stats(
            num_requests_running=len(scheduler.running),
            num_requests_waiting=self._admission.num_waiting,
            kv_cache_usage=1 - pool.num_free_blocks / len(pool.blocks),
            kv_cache_cached=pool.num_cached_blocks / len(pool.blocks),
            prefix_cache_queries=scheduler.num_prompt_tokens,
            prefix_cache_hits=scheduler.num_cached_tokens,
            prompt_tokens=scheduler.num_prompt_tokens,
            generation_tokens=scheduler.num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_draft_tokens=scheduler.drafter.num_draft_tokens,
            num_accepted_tokens=scheduler.drafter.num_accepted_tokens,
            num_evicted_blocks=pool.num_evicted_blocks,
            num_steps=self.engine.num_steps,
            index_state=index.state,
            index_errors=index.errors,
            index_lookups=index.lookups,
            index_resyncs=index.resyncs,
            index_dropped=index.dropped,
            index_elsewhere_tokens=self._num_elsewhere_tokens,
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


def _is_long(request: ChatRequest) -> bool:
    parts: list[Any] = [message.content for message in request.messages]
    parts += request.prediction, *((tool.description, tool.parameters) for tool in request.tools)
    num_characters = 0
    while parts and num_characters <= LONG_PROMPT_CHARACTERS:
        part = parts.pop()
        num_characters += MARKUP_CHARACTERS
        if isinstance(part, str):
            num_characters += len(part)
        elif isinstance(part, dict):
            parts += chained.from_iterable(part.items())
        elif isinstance(part, (list, tuple)):
            parts += part
    return num_characters > LONG_PROMPT_CHARACTERS


def _scope(request: ChatRequest) -> str:
    """Whose encodings may be reused: nobody can time what another tenant wrote."""
    return request.tenant.id + "\0" + (request.cache_salt or "")


def _choice_seed(seed: int, index: int) -> int:
    """A choice's own 64-bit signed seed; choice 0 has the caller's."""
    mixed = (seed + index * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def _wall_clock_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
