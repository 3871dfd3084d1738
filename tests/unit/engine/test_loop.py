"""The engine thread: whatever ends it, every request that was submitted gets an answer."""

import threading

import pytest

from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.loop import MAX_CONSECUTIVE_FAILURES, STOPPED, Engine, StepResult
from sessions.engine.request import Request
from sessions.engine.schedule import Computed, Schedule
from sessions.engine.scheduler import Scheduler
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

DEADLINE_S = 10


class BrokenRunner:
    """Fails every step; lets a test do something while it fails."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.count = 0

    def execute(self, schedule: Schedule) -> list[Computed]:
        self.count += 1
        assert self.engine is not None
        self.engine.submit(request(f"during {self.count}"))
        raise RuntimeError("no device")


def request(name: str) -> Request:
    chain = HashChain(BlockHash(b"r" * 16), 4)
    return Request(RequestId(name), [1, 2, 3], chain, SamplingParams(), 4, frozenset(), 0)


def test_every_request_is_answered_when_the_engine_gives_up() -> None:
    answered: dict[str, str] = {}
    all_answered = threading.Event()
    expected = {"first", *(f"during {count + 1}" for count in range(MAX_CONSECUTIVE_FAILURES))}

    def deliver(result: StepResult) -> None:
        answered.update((output.request_id, str(output.error)) for output in result.outputs)
        if answered.keys() >= expected:
            all_answered.set()

    runner = BrokenRunner()
    engine = Engine(Scheduler(EngineConfig(block_size=4), BlockPool(16, 4)), runner, deliver)
    runner.engine = engine
    engine.start()
    engine.submit(request("first"))
    assert all_answered.wait(DEADLINE_S), answered
    engine.stop(DEADLINE_S)
    assert not engine.is_alive
    engine.submit(request("late"))
    assert answered["late"] == STOPPED
    with pytest.raises(RuntimeError, match=STOPPED):
        engine.call(lambda: 1).result(DEADLINE_S)


def test_a_call_that_nobody_waits_for_any_more_is_skipped() -> None:
    runner = BrokenRunner()
    engine = Engine(Scheduler(EngineConfig(block_size=4), BlockPool(16, 4)), runner, lambda _: None)
    engine.start()
    held, release, ran = threading.Event(), threading.Event(), []

    def hold() -> None:
        held.set()
        release.wait(DEADLINE_S)

    engine.call(hold)
    assert held.wait(DEADLINE_S)
    abandoned = engine.call(lambda: ran.append(1))
    assert abandoned.cancel()
    release.set()
    assert engine.call(lambda: 7).result(DEADLINE_S) == 7
    assert not ran and engine.is_alive
    engine.stop(DEADLINE_S)
