"""The scheduler over the fake model: whatever it does, every completion is the one a lone, uncached request gets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.request import Request
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams
from tests.fakes import FakeRunner, next_token

VOCABULARY = 50


class Bench:
    """Scheduler, pool and fake runner, stepped by hand."""

    def __init__(self, **config: int) -> None:
        self.config = EngineConfig(
            **{"block_size": 4, "num_blocks": 32, "max_num_batched_tokens": 16, "max_num_seqs": 8} | config
        )
        self.scheduler = Scheduler(self.config, BlockPool(self.config.num_blocks, self.config.block_size))
        self.runner = FakeRunner(self.config.num_blocks, self.config.block_size, VOCABULARY)
        self.requests: list[Request] = []

    def add(self, prompt: list[int], max_tokens: int = 4, root: bytes = b"r") -> Request:
        chain = HashChain(BlockHash(root * 16), self.config.block_size)
        chain.extend(prompt)
        request_id = RequestId(str(len(self.requests)))
        request = Request(request_id, list(prompt), chain, SamplingParams(temperature=0), max_tokens, frozenset(), 0)
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
    return tokens


def test_next_turn_computes_its_new_tokens_and_one_more() -> None:
    bench = Bench()
    first = bench.add(list(range(10)), max_tokens=5)
    bench.run()
    before = bench.runner.num_computed_tokens
    second = bench.add([*first.token_ids, 7, 8, 9], max_tokens=1)
    bench.run()
    assert second.num_cached_tokens == first.num_tokens - 1
    assert bench.runner.num_computed_tokens - before == 3 + 1
    assert second.token_ids == expected(second)


def test_identical_prompts_arriving_together_are_computed_once() -> None:
    bench = Bench(max_num_batched_tokens=64)
    requests = [bench.add(list(range(30)), max_tokens=3) for _ in range(4)]
    bench.run()
    prompt_tokens = bench.runner.num_computed_tokens - 4 * 2
    assert prompt_tokens == 30 + 3, "30 once, then one token per fork for its logits"
    assert all(request.token_ids == expected(request) for request in requests)


def test_a_long_prompt_never_stops_a_running_stream() -> None:
    bench = Bench(num_blocks=64)
    stream = bench.add([1, 2, 3], max_tokens=30)
    bench.step()
    bench.add(list(range(100)), max_tokens=1)
    for _ in range(6):
        before = stream.num_output_tokens
        bench.step()
        assert stream.num_output_tokens == before + 1


def test_preempted_requests_end_with_the_same_tokens() -> None:
    bench = Bench(num_blocks=10)
    requests = [bench.add([index] * 6, max_tokens=20) for index in range(3)]
    bench.run()
    assert bench.scheduler.num_preemptions > 0
    assert all(request.token_ids == expected(request) for request in requests)


def test_a_failed_step_registers_nothing() -> None:
    bench = Bench()
    first = bench.add(list(range(10)))
    bench.run()
    bench.add([*first.token_ids[:6], 40, 41])
    bench.scheduler.schedule()
    bench.scheduler.fail_running()
    bench.scheduler.check_integrity()
    again = bench.add([*first.token_ids[:6], 40, 41])
    bench.run()
    assert again.token_ids == expected(again)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_traffic_gives_lone_answers(data: st.DataObject) -> None:
    bench = Bench(
        num_blocks=data.draw(st.integers(8, 24)),
        block_size=data.draw(st.integers(1, 5)),
        max_num_seqs=data.draw(st.integers(1, 4)),
        max_num_batched_tokens=data.draw(st.integers(4, 12)),
    )
    aborted = set()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "add", "continue", "step", "step", "abort"]))
        finished = [r for r in bench.requests if r.status.value == "finished" and r.id not in aborted]
        room = bench.config.pool_tokens - 1
        if action == "add":
            prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=max(1, min(14, room - 3))))
            bench.add(prompt[: room - 3] or [1], max_tokens=2, root=data.draw(st.sampled_from([b"a", b"b"])))
        elif action == "continue" and finished:
            past = data.draw(st.sampled_from(finished))
            if past.num_tokens + 4 <= room:
                bench.add([*past.token_ids, 1], max_tokens=2, root=past.root[:1])
        elif action == "abort" and bench.requests:
            victim = data.draw(st.sampled_from(bench.requests))
            if bench.scheduler.abort(victim.id):
                aborted.add(victim.id)
        else:
            bench.step()
        bench.scheduler.check_integrity()
    bench.run()
    assert bench.scheduler.pool.num_free_blocks == bench.config.num_blocks
    for request in bench.requests:
        if request.id not in aborted:
            assert request.token_ids == expected(request)
