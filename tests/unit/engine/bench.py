"""Scheduler, pool and fake runner, stepped by hand."""

from collections.abc import Collection

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.request import Request
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams
from tests.fakes import FakeRunner, next_token

VOCABULARY = 50
GREEDY = SamplingParams(temperature=0)


class Bench:
    """Scheduler, pool and fake runner, stepped by hand."""

    def __init__(self, **config: int) -> None:
        self.config = EngineConfig(
            **{"block_size": 4, "num_blocks": 32, "max_num_batched_tokens": 16, "max_num_seqs": 8} | config
        )
        pool = BlockPool(self.config.num_blocks, self.config.block_size, self.config.max_pinned_blocks)
        self.scheduler = Scheduler(self.config, pool)
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
    ) -> Request:
        chain = HashChain(BlockHash(root * 16), self.config.block_size)
        chain.extend(prompt)
        request_id = RequestId(str(len(self.requests)))
        request = Request(request_id, list(prompt), chain, params, max_tokens, frozenset(eos), 0, tuple(prediction))
        self.requests.append(request)
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        self.scheduler.commit(schedule, self.runner.execute(schedule))
        self.scheduler.check_integrity()

    def run(self) -> None:
        for _ in range(500):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no progress")


def expected(request: Request) -> list[int]:
    tokens = request.token_ids[: request.num_prompt_tokens]
    for _ in range(request.max_tokens):
        tokens = [*tokens, next_token(tokens, VOCABULARY)]
        if tokens[-1] in request.eos_token_ids:
            break
    return tokens
