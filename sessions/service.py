"""ChatService: a chat request in, a Generation out. The only door between `proxy` and conversations.

    start: render ▸ splice ▸ encode ▸ chain of block hashes ▸ (Redis, when it can know more) ▸ requests
    outputs: engine thread ──one call_soon_threadsafe per step──▶ Generation ▸ TextStream ▸ Delta

Everything here runs on the event loop, but `_deliver`, which is the engine thread's.
"""

import asyncio
import secrets
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from sessions.admission import Admission
from sessions.affinity import Affinity
from sessions.assembly import new_replies, new_scheduler
from sessions.cache_control import CacheControl
from sessions.completing import encode_prompts
from sessions.counted import counted
from sessions.dialect import THINK_OPEN
from sessions.documents import LocalDocuments
from sessions.engine.loop import Engine, Runner, StepResult
from sessions.engine.request import RestoredBlocks
from sessions.errors import ContextLengthExceeded, Draining, EngineFailed, InvalidRequest
from sessions.explainer import Explainer
from sessions.generation import Choice, Echo, Generation
from sessions.grammars import CompiledGrammar, Grammars
from sessions.hashing import root_hash, shared_key, system_fingerprint, tenant_key
from sessions.keeping import keeping_of
from sessions.lower_tiers import CALL_TIMEOUT_S, LowerTiers
from sessions.parts import ServiceParts
from sessions.prompting import Prompted, Prompter, scope_of
from sessions.reports import Comparison, Explanation, KVLayout, PromptReport, Readiness, Stats, Usage
from sessions.response_store import ResponseStore
from sessions.sightings import Sightings
from sessions.submission import EnginePrompt, choices_of, parser_of
from sessions.submission import engine_requests as requests_of
from sessions.texts import Texts
from sessions.tool_grammar import demands_grammar, reply_grammar
from sessions.transcripts import Said
from sessions.truncation import truncated
from sessions.types import BlockHash, ChatRequest, CompletionRequest, RequestId, SamplingParams, TokenId


class ChatService:
    """One model, one engine, one index. Made by `startup.open_service`."""

    def __init__(self, parts: ServiceParts, runner: Runner) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts = parts
        self._admission = Admission(parts.max_num_waiting)
        self._generations: dict[RequestId, Generation] = {}
        self._draining = False
        self.model_id = parts.model_id
        self.system_fingerprint = system_fingerprint(parts.root_fields)
        self.created = int(_wall_clock_s())
        self.max_model_len = min(parts.engine_config.max_model_len, parts.engine_config.pool_tokens)
        self.pool_tokens = parts.engine_config.pool_tokens
        self.bytes_per_token = parts.bytes_per_token
        self.vocab_size = parts.tokenizer.vocab_size
        self.grammars = Grammars(parts.tokenizer)

        shared_root = root_hash(parts.root_fields, shared_key(parts.secret)) if parts.shared_prompts else None
        self.engine = Engine(new_scheduler(parts, shared_root), runner, self._deliver)
        fleet = root_hash(parts.root_fields, tenant_key(parts.secret, "", None))
        self._affinity = Affinity()
        self._lower = LowerTiers(parts, self.engine, fleet, shared_root)
        self.index = self._lower.index
        self._drops = self.engine.scheduler.pool.drops
        self._replies = new_replies(parts, self.index, self._drops)
        self._prompter = Prompter(
            parts.tokenizer,
            self._replies,
            self.root_of,
            block_size=parts.engine_config.block_size,
            max_model_len=self.max_model_len,
            stable_first=parts.stable_first,
            keeps_reasoning=parts.keeps_reasoning,
        )
        if shared_root is not None:
            self._prompter.share(shared_root, parts.shared_prompts)

        keeping = parts.index.client.keeping
        local = None if keeping is None else LocalDocuments(keeping)
        self.responses = ResponseStore(self.index.documents or local, parts.secret, max_bytes=parts.max_stored_bytes)
        self.texts = Texts(parts.tokenizer, self._prompter)
        self._sightings = Sightings(self.index, parts.secret, parts.root_fields)
        known = self.engine, self._prompter, self._replies, self._sightings
        self.cache = CacheControl(*known, self._lower.tiers)
        self._explainer = Explainer(*known, self.index, self._lower.tiers, parts.tokenizer)

    # -- requests --

    async def start(self, request: ChatRequest | CompletionRequest) -> Generation:
        """Accept a request. Raises InvalidRequest, ContextLengthExceeded, Overloaded, Draining, EngineFailed."""
        if isinstance(request, CompletionRequest):
            return await self._complete(request)
        return await self._start(request, is_open=True)

    async def warm(self, request: ChatRequest) -> Usage:
        """Compute and keep what these messages render to, and say nothing. Raises as `start` does."""
        silent = replace(request, n=1, params=replace(request.params, max_tokens=0, grammar=None))
        generation = await self._start(silent, is_open=False)
        try:
            async for _ in generation:
                pass
        finally:
            generation.close()
        return generation.usage()

    async def explain(self, request: ChatRequest) -> Explanation:
        """What `start` would find of the request in the cache, and why no more. Raises as `start` does."""
        self._refuse_if_unable(0)
        asking = replace(request, wants_explanation=True)
        return await self._explainer.explain(asking, await self._prompter.prompt(asking))

    async def count(self, request: ChatRequest) -> int:
        """Tokens of the prompt. Raises InvalidRequest, ContextLengthExceeded."""
        return len((await self._prompter.prompt(request)).token_ids)

    async def truncated(self, request: ChatRequest, room: int) -> tuple[ChatRequest, int]:
        """The request without so many of its oldest messages that it leaves `room` tokens for a reply, and how many.

        Where no cut does it, it is the shortest. Raises InvalidRequest.
        """

        async def fits(shorter: ChatRequest) -> bool:
            try:
                return await self.count(shorter) + room <= self.max_model_len
            except ContextLengthExceeded:
                return False

        return await truncated(request, fits, step=self.max_model_len)

    def kv_layout(self) -> KVLayout:
        config, parts = self._parts.engine_config, self._parts
        return KVLayout(
            parts.kv_layers,
            parts.kv_dtype,
            self.bytes_per_token,
            config.block_size,
            config.num_blocks,
            self.max_model_len,
        )

    def root_of(self, tenant_id: str, salt: str | None) -> BlockHash:
        """What all that a tenant computes with this salt, or without one, hangs from. Any thread."""
        return root_hash(self._parts.root_fields, tenant_key(self._parts.secret, tenant_id, salt))

    async def _start(self, request: ChatRequest, *, is_open: bool) -> Generation:
        self._refuse_if_unable(request.n)
        prompted = await self._prompter.prompt(request, is_open=is_open)
        request = self._constrained(request, prompted)
        grammar = request.params.grammar if is_open else None
        compiled = None if grammar is None else await self.grammars.compile(grammar, request.tenant.id)
        if request.wants_explanation:
            explanation = await self._explainer.explain(request, prompted)
            prompted = replace(prompted, report=replace(prompted.report, explanation=explanation))
        if request.compared is not None:
            comparison = await self._compare(prompted, request.compared)
            prompted = replace(prompted, report=replace(prompted.report, comparison=comparison))
        restored: tuple[RestoredBlocks, ...] = ()
        if not request.cache.is_explicit:
            restored = await self._lower.restore(prompted.chain, prompted.token_ids)
        self._refuse_if_unable(request.n)
        return self._submit_chat(request, prompted, restored, compiled)

    def _constrained(self, request: ChatRequest, prompted: Prompted) -> ChatRequest:
        """The request with what its tools and the model's thoughts make of its grammar."""
        if not self.grammars.is_usable and not demands_grammar(request):
            return request
        tokenizer = self._parts.tokenizer
        dialect = tokenizer.template.dialect
        grammar = reply_grammar(dialect, tokenizer.marker_ids, request, is_thinking=self._is_thinking(prompted))
        return replace(request, params=replace(request.params, grammar=grammar))

    def _is_thinking(self, prompted: Prompted) -> bool:
        dialect = self._parts.tokenizer.template.dialect
        return dialect.thinks and prompted.prompt.text.rstrip().endswith(THINK_OPEN)

    async def _compare(self, prompted: Prompted, earlier: ChatRequest) -> Comparison | None:
        """None where the earlier request cannot be rendered any more: it does not fit the model of now."""
        try:
            return await self._explainer.compare(prompted, await self._prompter.prompt(earlier))
        except InvalidRequest:
            return None

    def _refuse_if_unable(self, num_choices: int) -> None:
        if self._draining:
            raise Draining
        if not self.engine.is_alive:
            raise EngineFailed("The engine is not running.")
        self._admission.admit(num_choices)

    def _submit_chat(
        self,
        request: ChatRequest,
        prompted: Prompted,
        restored: tuple[RestoredBlocks, ...],
        grammar: CompiledGrammar | None,
    ) -> Generation:
        remembers = not request.cache.is_explicit or bool(prompted.breakpoints)
        said = self._replies.begin(prompted.opening, request.n) if remembers else [Said() for _ in range(request.n)]

        def remember(choice: Choice) -> None:
            if remembers:
                is_first = choice.index == 0
                self._replies.end(prompted.opening, choice.said, is_whole=choice.is_finished, is_first=is_first)
                if is_first and not self._drops.bars(prompted.opening.num_settled_drops, request.tenant.id):
                    self._sightings.note(request, prompted.opening.conversation)

        keeping = keeping_of(request.cache, prompted.breakpoints)
        opening = prompted.opening
        prompt = EnginePrompt(
            prompted.token_ids,
            prompted.chain,
            keeping,
            prompted.prediction,
            restored,
            grammar,
            num_settled_drops=opening.num_settled_drops,
        )
        choices = choices_of(request, [prompt], said, self._parts.tokenizer)
        dialect, is_thinking = self._parts.tokenizer.template.dialect, self._is_thinking(prompted)
        for choice in choices:
            choice.parser = parser_of(request, dialect, is_thinking=is_thinking)
        return self._submit(f"chatcmpl-{secrets.token_hex(12)}", request, [prompt], choices, remember, prompted.report)

    async def _complete(self, request: CompletionRequest) -> Generation:
        num_choices = len(request.prompts) * request.n
        self._refuse_if_unable(num_choices)
        tokenizer, scope = self._parts.tokenizer, scope_of(request)
        encoded = await encode_prompts(
            request, tokenizer, self._prompter.apart, scope=scope, max_model_len=self.max_model_len
        )
        prompts = [await self._prepare(request, token_ids, echo) for token_ids, echo in encoded]
        self._refuse_if_unable(num_choices)
        choices = choices_of(request, prompts, [Said() for _ in range(num_choices)], tokenizer)
        return self._submit(f"cmpl-{secrets.token_hex(12)}", request, prompts, choices, lambda _: None, PromptReport())

    async def _prepare(self, request: CompletionRequest, token_ids: list[TokenId], echo: Echo) -> EnginePrompt:
        """Hash the prompt and look below the pool for it. One that is scored is computed, whoever has it."""
        num_settled_drops = self._drops.settled
        chain = self._prompter.new_chain(request.tenant, request.cache_salt)
        chain.extend(token_ids)
        is_scored = request.echo and request.params.num_logprobs is not None
        restored: tuple[RestoredBlocks, ...] = ()
        if not request.cache.is_explicit and not is_scored:
            restored = await self._lower.restore(chain, token_ids)
        return EnginePrompt(
            array("I", token_ids),
            chain,
            keeping_of(request.cache, ()),
            restored=restored,
            echo=echo if request.echo else None,
            is_scored=is_scored,
            num_settled_drops=num_settled_drops,
        )

    def _submit(
        self,
        generation_id: str,
        request: ChatRequest | CompletionRequest,
        prompts: Sequence[EnginePrompt],
        choices: Sequence[Choice],
        remember: Callable[[Choice], None],
        report: PromptReport,
    ) -> Generation:
        engine_requests = requests_of(
            generation_id,
            request,
            prompts,
            seeds=[_seed(request.params) for _ in prompts],
            eos_token_ids=self._parts.tokenizer.eos_token_ids,
            max_model_len=self.max_model_len,
            is_returning=self._affinity.returns(request.tenant.id, request.cache.group),
        )
        by_id = {asked.id: choice for asked, choice in zip(engine_requests, choices, strict=True)}
        generation = Generation(generation_id, by_id, self.engine.abort, self._forget, remember, report)
        self._admission.submitted(engine_requests)
        for engine_request in engine_requests:
            self._generations[engine_request.id] = generation
            self.engine.submit(engine_request)
        return generation

    def _forget(self, request_ids: Sequence[RequestId]) -> None:
        self._admission.ended(request_ids)
        for request_id in request_ids:
            self._generations.pop(request_id, None)

    # -- what a step did --

    def _deliver(self, result: StepResult) -> None:
        """Engine thread: tell the tiers what they may write, then cross to the event loop once per step."""
        self._lower.offer(result, self.root_of)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, result)

    def _dispatch(self, result: StepResult) -> None:
        self._admission.settle()
        self._lower.publish(result)
        for output in result.outputs:
            generation = self._generations.get(output.request_id)
            if generation is not None:
                generation.receive(output)

    # -- state --

    def stats(self) -> Stats:
        """A snapshot for `/metrics`."""
        self._admission.settle()
        return counted(self.engine, self._admission.num_waiting, self._lower)

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
        self.grammars.close()
        await self._lower.close()
        await asyncio.to_thread(self.engine.stop, CALL_TIMEOUT_S)


def _seed(params: SamplingParams) -> int:
    """The same for every prompt of a request that has one, so that none depends on those beside it."""
    return secrets.randbits(63) if params.seed is None else params.seed


def _wall_clock_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
