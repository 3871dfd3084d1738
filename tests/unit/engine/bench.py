"""Scheduler, pool and fake runner, stepped by hand."""

import time
from array import array
from collections.abc import Callable, Collection, Sequence

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.request import Request
from sessions.engine.schedule import Schedule
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain, SharedContent, chain_hashes
from sessions.types import BlockHash, RequestId, SamplingParams
from tests.fakes import FakeRunner, next_token

VOCABULARY = 50
GREEDY = SamplingParams(temperature=0)


class Bench:
    """Scheduler, pool and fake runner, stepped by hand."""

    def __init__(
        self,
        shared: SharedContent | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_slowdown: float = 0,
        **config: int,
    ) -> None:
        sizes = {"block_size": 4, "num_blocks": 32, "max_num_batched_tokens": 16, "max_num_seqs": 8} | config
        self.config = EngineConfig(**sizes, max_slowdown=max_slowdown)
        self.shared = shared
        shared_root = shared.root if shared else None
        pool = BlockPool(self.config.num_blocks, self.config.block_size, self.config.max_pinned_blocks, shared_root)
        self.scheduler = Scheduler(self.config, pool, clock)
        self.runner = FakeRunner(self.config.num_blocks, self.config.block_size, VOCABULARY)
        self.requests: list[Request] = []

    def add(
        self,
        prompt: list[int],
        max_tokens: int = 4,
        root: bytes = b"r",
        eos: Collection[int] = (),
        params: SamplingParams = GREEDY,
        prediction: Collection[int] = (),
        owner: str | None = None,
    ) -> Request:
        hashes = HashChain(BlockHash(root * 16), self.config.block_size, self.shared)
        hashes.extend(prompt)
        request_id = RequestId(str(len(self.requests)))
        token_ids = array("I", prompt)
        request = Request(request_id, token_ids, hashes, params, max_tokens, frozenset(eos), 0, tuple(prediction))
        request.owner = owner
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def step(self) -> Schedule:
        schedule = self.scheduler.schedule()
        self._expect_own(schedule)
        self.scheduler.commit(schedule, self.runner.execute(schedule))
        self.scheduler.check_integrity()
        return schedule

    def _expect_own(self, schedule: Schedule) -> None:
        """Nobody reads what is another root's: what is held and what is copied is the request's own, or shared."""
        copied = {destination: source for source, destination in schedule.copies}
        for request in self.scheduler.running:
            own = {request.chain.branch_at(index) for index in range(len(request.block_table) + 1)}
            readable = {None, self.shared.root if self.shared else None, *own}
            assert readable >= {copied.get(block, block).root for block in request.block_table}

    def run(self) -> None:
        for _ in range(500):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no progress")


def shared_content(prompts: Sequence[list[int]], block_size: int) -> SharedContent:
    root = BlockHash(b"S" * 16)
    return SharedContent.of(root, [chain_hashes(root, ids, block_size) for ids in prompts])


def expected(request: Request) -> "array[int]":
    tokens = request.token_ids[: request.num_prompt_tokens]
    for _ in range(request.max_tokens):
        tokens.append(next_token(tokens, VOCABULARY))
        if tokens[-1] in request.eos_token_ids:
            break
    return tokens
