"""How many blocks N requests hold that share a prefix: the product's own scheduler and pool, with no model behind them.

Nothing is timed. The requests run side by side until each has its first token; then the pool is asked what is held.
"""

from array import array
from typing import Final

import numpy as np

from benchmarks.instant_runner import InstantRunner
from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.request import Request
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

WORD: Final = 7
VOCABULARY: Final = 50_000


def num_held_blocks(num_requests: int, prefix: int, own: int, block_size: int, *, shares: bool) -> int:
    """Blocks that the pool counts as held. shares: one root for all requests; else each has its own, as tenants do."""
    per_request = -(-(prefix + own + 2) // block_size)  # with the reply, which has begun
    config = EngineConfig(
        block_size=block_size,
        num_blocks=num_requests * (per_request + 1),
        max_num_batched_tokens=num_requests * (prefix + own),  # all prompts in a step or two
        max_num_seqs=max(num_requests, 1),
        max_model_len=prefix + own + 2,
        max_slowdown=0,
        max_num_draft_tokens=0,
    )
    pool = BlockPool(config.num_blocks, block_size)
    scheduler, runner = Scheduler(config, pool), InstantRunner(WORD)
    generator = np.random.default_rng(num_requests)
    common = generator.integers(0, VOCABULARY, prefix).tolist()
    requests = []
    for index in range(num_requests):
        chain = HashChain(BlockHash((0 if shares else index).to_bytes(16, "little")), block_size)
        prompt = [*common, *generator.integers(0, VOCABULARY, own).tolist()]
        chain.extend(prompt)
        request = Request(
            RequestId(str(index)), array("I", prompt), chain, SamplingParams(temperature=0), 1_000_000, frozenset(), 0
        )
        requests.append(request)
        scheduler.add(request)
    while any(request.num_output_tokens < 1 for request in requests):
        schedule = scheduler.schedule()
        scheduler.commit(schedule, runner.execute(schedule))
    return config.num_blocks - pool.num_free_blocks


def expected_blocks(num_requests: int, prefix: int, own: int, block_size: int, *, shares: bool) -> int:
    """The formula: whole blocks of the prefix once, or once for each, and what is each one's own."""
    alone = -(-(prefix + own) // block_size)
    shared = prefix // block_size if shares else 0
    return shared + num_requests * (alone - shared)
