"""Who runs this step, how many tokens each, who waits, who is preempted. Pure Python; engine thread only.

`schedule()` plans a step and takes the blocks it needs; the runner computes it; `commit()` makes the result count.

    waiting ──admit──▶ running ──finish/abort──▶ (gone)
       ▲                  │
       └────preempt───────┘     blocks freed, tokens kept, recomputed later (mostly from the pool)

Order of a step's token budget: one token for every running request that only decodes, then prompts being computed, then
admissions in order of arrival; beside streams no more than `Pace` allows. A long prompt is chunked, and slows streams
down instead of stopping them.

Identical prefixes arriving together are computed once: `_computing` names the blocks of prompts under way; a waiting
request whose next missing block is among them waits for it instead of computing it again. Forks (`n` choices)
are nothing else: `n` requests with one prompt.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from sessions.engine.block import Block, num_idle
from sessions.engine.block_pool import BlockPool
from sessions.engine.block_tree import Match
from sessions.engine.config import EngineConfig
from sessions.engine.drafts import MAX_DRAFTING_SEQS, Drafter
from sessions.engine.holder import Holder
from sessions.engine.pace import Pace
from sessions.engine.request import Request, RequestOutput, RequestStatus, Stored
from sessions.engine.schedule import Computed, Schedule, Scheduled
from sessions.hashing import extend_tokens
from sessions.rate import Rate
from sessions.types import BlockHash, FinishReason, RequestId

LEAST_PREFILL_TOKENS = 64
"""Shorter prefills measure what a step costs rather than its tokens."""


class Scheduler:
    """Continuous batching over one `BlockPool`. Mutates requests, the pool and itself; raises nothing."""

    def __init__(self, config: EngineConfig, pool: BlockPool, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.pool = pool
        self.holder = Holder(pool, clock)
        self.pace = Pace(config.max_slowdown)
        self._clock = clock
        self._started_at = 0.0
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0
        self.prefill_rate = Rate(LEAST_PREFILL_TOKENS)
        """Prompt tokens per second, from admission to the end of the prompt, other requests' share included."""
        self.drafter = Drafter(pool, config.max_num_draft_tokens)
        self._computing: dict[BlockHash, Request] = {}

    # -- requests in and out --

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_preempted(self) -> int:
        """Waiting requests that ran before. Any thread."""
        return sum(request.admitted_at is not None for request in list(self.waiting))

    def add(self, request: Request) -> None:
        """Queue a request whose prompt plus one token fits the pool (the service has checked)."""
        self.waiting.append(request)

    def abort(self, request_id: RequestId) -> bool:
        """Forget a request; its blocks are free at once, what was computed stays cached. False if unknown."""
        for request in self.running:
            if request.id == request_id:
                self._finish(request)
                return True
        for request in self.waiting:
            if request.id == request_id:
                self.waiting.remove(request)
                request.status = RequestStatus.FINISHED
                return True
        return False

    def fail_running(self) -> list[Request]:
        """A step raised: drop every running request. What the step wrote was never registered: nothing is wrong."""
        failed = list(self.running)
        for request in failed:
            self._release(request)
            request.status = RequestStatus.FINISHED
        return failed

    # -- schedule --

    def schedule(self) -> Schedule:
        """Plan the next step and take its blocks."""
        self._started_at = self._clock()
        schedule = Schedule()
        budget = self.config.max_num_batched_tokens
        preemptions = self.num_preemptions
        streams = [request for request in self.running if request.num_tokens - request.num_computed_tokens == 1]
        prompts = [request for request in self.running if request.num_tokens - request.num_computed_tokens > 1]
        budget = self._schedule_all(streams, schedule, budget)
        if schedule.entries:
            budget = self.pace.num_prompt_tokens(budget)
        budget = self._schedule_all(prompts, schedule, budget)
        if preemptions == self.num_preemptions:
            self._admit(schedule, budget)
        return schedule

    def _schedule_all(self, requests: Sequence[Request], schedule: Schedule, budget: int) -> int:
        """Returns what is left of the budget. Whoever runs early may preempt whoever comes later."""
        for request in requests:
            if budget and request.status is RequestStatus.RUNNING:
                budget -= self._schedule_running(request, schedule, budget)
        return budget

    def _schedule_running(self, request: Request, schedule: Schedule, budget: int) -> int:
        """Give a running request its tokens, preempting the youngest if blocks are short. Returns tokens used."""
        num_tokens = min(request.num_tokens - request.num_computed_tokens, budget)
        needed = self._num_blocks_needed(request, num_tokens)
        while needed > self.pool.num_free_blocks:
            victim = self.running[-1]
            self._preempt(victim, schedule)
            if victim is request:
                return 0
        return self._start(request, num_tokens, budget, schedule)

    def _num_blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Blocks to add so that the next `num_tokens` tokens have slots."""
        end = request.num_computed_tokens + num_tokens
        return -(-end // self.config.block_size) - len(request.block_table)

    def _start(self, request: Request, num_tokens: int, budget: int, schedule: Schedule) -> int:
        """Take the blocks, there are enough; add drafts where they cost nobody anything. Returns tokens used."""
        drafts: tuple[int, ...] = ()
        is_quiet = len(self.running) + len(self.waiting) <= MAX_DRAFTING_SEQS
        if request.num_computed_tokens + num_tokens == request.num_tokens:
            spare = budget - num_tokens - (0 if is_quiet else len(self.running))  # a token each for all that decode
            drafts = self.drafter.propose(request, spare, may_guess=is_quiet)
            if self._num_blocks_needed(request, num_tokens + len(drafts)) > self.pool.num_free_blocks:
                drafts = ()
        num_blocks = self._num_blocks_needed(request, num_tokens + len(drafts))
        if num_blocks > 0:
            self.holder.extend(request, num_blocks)
        schedule.entries.append(Scheduled(request, request.num_computed_tokens, num_tokens, drafts))
        return num_tokens + len(drafts)

    def _preempt(self, request: Request, schedule: Schedule) -> None:
        """Take the blocks back; the request goes to the head of the queue and recomputes what the pool loses."""
        schedule.entries = [entry for entry in schedule.entries if entry.request is not request]
        schedule.copies = [copy for copy in schedule.copies if copy[1] not in request.block_table]
        self._release(request)
        request.status = RequestStatus.WAITING
        self.waiting.appendleft(request)
        self.num_preemptions += 1

    # -- admit --

    def _admit(self, schedule: Schedule, budget: int) -> None:
        """Let waiting requests in, first come first served, while budget, sequences and blocks last.

        A request that waits for another's blocks is passed over and keeps its place; one that finds no room stops the
        queue, so that small requests cannot starve a large one.
        """
        held_back: list[Request] = []
        while self.waiting and budget and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.popleft()
            match = self.holder.readable(request)
            if self._is_being_computed(request, match):
                held_back.append(request)
                continue
            if not self._has_room(request, match):
                self.waiting.appendleft(request)
                break
            budget -= self._admit_one(request, match, schedule, budget)
        self.waiting.extendleft(reversed(held_back))

    def _is_being_computed(self, request: Request, match: Match) -> bool:
        """Does another compute what the request misses first, and will it be found?"""
        key = self._next_missing(request, match)
        other = None if key is None else self._computing.get(key)
        return other is not None and not self.pool.drops.bars(
            other.num_settled_drops, other.owner, other.chain.branch, key
        )

    def _next_missing(self, request: Request, match: Match) -> BlockHash | None:
        """Key of the first block that the pool does not hold: its hash, or the hash of the prompt's whole tail.

        None where the request could not read it.
        """
        index = len(match.blocks)
        if request.read_points is not None and request.readable(request.num_tokens) <= index * self.config.block_size:
            return None
        if index < len(request.chain.hashes):
            return request.chain.hashes[index]
        return self._tail_key(request) if match.num_tail_tokens < self._num_tail_tokens(request) - 1 else None

    def _num_tail_tokens(self, request: Request) -> int:
        return request.num_tokens - len(request.chain.hashes) * self.config.block_size

    def _tail_key(self, request: Request) -> BlockHash:
        """Stands for the prompt's last, partial block while it is being computed."""
        tail = request.token_ids[len(request.chain.hashes) * self.config.block_size :]
        return extend_tokens(request.chain.parent, tail)

    def _has_room(self, request: Request, match: Match) -> bool:
        """Room for the whole prompt and one more block, so that admission does not cause preemption at once."""
        from_queue = num_idle(match.blocks)
        missing = -(-(request.num_tokens + 1) // self.config.block_size) - len(match.blocks)
        spare = self.pool.num_free_blocks - from_queue
        return missing <= spare and (not self.running or missing + 1 <= spare)

    def _admit_one(self, request: Request, match: Match, schedule: Schedule, budget: int) -> int:
        """Attach what the pool holds, start on the rest. Returns tokens used."""
        num_cached, num_restored = self.holder.attach(request, match, schedule)
        if request.num_cached_tokens is None:
            if request.retention.priority != "low":
                request.level = max(request.level, self.pool.reuse(match, request.chain.hashes))
            request.num_cached_tokens = min(num_cached, request.num_prompt_tokens)
            request.num_restored_tokens = num_restored
            request.admitted_at = time.monotonic()
            self.num_prompt_tokens += request.num_prompt_tokens
            self.num_cached_tokens += request.num_cached_tokens
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        for key in self._keys_to_compute(request):
            self._computing.setdefault(key, request)
        num_tokens = min(request.num_tokens - num_cached, budget)
        return self._start(request, num_tokens, budget, schedule)

    def _keys_to_compute(self, request: Request) -> Iterator[BlockHash]:
        if request.write_limit is not None:
            yield from request.chain.hashes[
                request.num_registered_blocks : request.write_limit // self.config.block_size
            ]
            return
        yield from request.chain.hashes[request.num_registered_blocks :]
        if self._num_tail_tokens(request):
            yield self._tail_key(request)

    # -- commit --

    def commit(self, schedule: Schedule, computed: list[Computed]) -> list[RequestOutput]:
        """The step ran. `computed`: what came of each entry, in order. Register, append, finish."""
        self.pace.observe(schedule, self._clock() - self._started_at)
        outputs = []
        for entry, result in zip(schedule.entries, computed, strict=True):
            request = entry.request
            request.num_computed_tokens += entry.num_tokens
            request.prompt_scores += result.prompt_scores
            prompt_done = entry.start < request.num_prompt_tokens <= request.num_computed_tokens
            self.holder.register_full_blocks(request)
            if prompt_done:
                self.holder.register_tail(request)
                self._stop_computing(request)
            if not entry.samples:
                continue
            self.drafter.observe(request, len(entry.drafts), len(result.token_ids) - 1)
            outputs.append(self._append(request, result, prompt_done=prompt_done))
        return outputs

    def _append(self, request: Request, result: Computed, *, prompt_done: bool) -> RequestOutput:
        """Keep the drawn tokens up to one that ends the request. All but the last were drafts: their KV is there."""
        token_ids = result.token_ids
        finish_reason: FinishReason | None = "length" if request.max_tokens == 0 else None
        count = 0
        while count < len(token_ids) and finish_reason is None and request.error is None:
            request.append(token_ids[count])
            count += 1
            finish_reason = request.finish_reason()
        self.num_generated_tokens += count
        if len(token_ids) > 1:
            request.num_computed_tokens += min(count, len(token_ids) - 1)
            self.holder.register_full_blocks(request)
        stored: tuple[Stored, ...] = ()
        if prompt_done and request.admitted_at is not None:
            num_computed = request.num_prompt_tokens - (request.num_cached_tokens or 0)
            self.prefill_rate.observe(num_computed, time.monotonic() - request.admitted_at)
        has_ended = finish_reason is not None or request.error is not None
        if prompt_done or has_ended:
            stored = self.holder.stored(request)
        if has_ended:
            self._finish(request)
        return RequestOutput(
            request.id,
            token_ids[:count],
            finish_reason,
            request.num_cached_tokens or 0,
            stored,
            request.admitted_at,
            request.error,
            prediction=(request.num_accepted_prediction_tokens, request.num_rejected_prediction_tokens),
            num_restored_tokens=request.num_restored_tokens,
            scores=result.scores[:count],
            prompt_scores=tuple(request.prompt_scores) if prompt_done else (),
            ends_with_eos=finish_reason == "stop" and request.ends_with_eos,
        )

    def _stop_computing(self, request: Request) -> None:
        for key in [key for key, owner in self._computing.items() if owner is request]:
            del self._computing[key]

    def _finish(self, request: Request) -> None:
        self.holder.register_tail(request, is_final=True)
        self._release(request)
        request.status = RequestStatus.FINISHED

    def _release(self, request: Request) -> None:
        self._stop_computing(request)
        self.running.remove(request)
        self.holder.let_go(request)

    # -- invariants --

    def check_integrity(self) -> None:
        """Raise AssertionError unless references, tables and statuses agree. O(blocks)."""
        self.pool.check_integrity()
        held: dict[Block, int] = {}
        for request in self.running:
            assert request.status is RequestStatus.RUNNING
            assert len(request.block_table) * self.config.block_size >= request.num_computed_tokens
            for block in request.block_table:
                held[block] = held.get(block, 0) + 1
        for block in self.pool.blocks:
            assert block.ref_count == held.get(block, 0), f"{block} is held {held.get(block, 0)} times"
        assert all(request.status is RequestStatus.WAITING for request in self.waiting)
        assert all(owner.status is RequestStatus.RUNNING for owner in self._computing.values())
