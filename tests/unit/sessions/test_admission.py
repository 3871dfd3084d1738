"""Admission: the count is what the engine has not begun, whatever it does; Retry-After follows the measured rate."""

from array import array
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.admission import LONGEST_RETRY_AFTER_S, SHORTEST_RETRY_AFTER_S, WINDOW_S, Admission
from sessions.engine.block_pool import BlockPool
from sessions.engine.config import EngineConfig
from sessions.engine.request import Request
from sessions.engine.scheduler import Scheduler
from sessions.errors import Overloaded
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams
from tests.fakes import FakeRunner

numbers = count()


def new_requests(num_requests: int, prompt: list[int] | None = None, max_tokens: int = 4) -> list[Request]:
    """The choices of one chat request."""
    chain = HashChain(BlockHash(b"r" * 16), block_size=4)
    chain.extend(prompt or [1])
    return [
        Request(
            RequestId(str(next(numbers))),
            array("I", prompt or [1]),
            chain.fork(),
            SamplingParams(temperature=0),
            max_tokens,
            frozenset(),
            0,
        )
        for _ in range(num_requests)
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Queue:
    """An admission with a clock and an engine that begins requests when told to, oldest first."""

    def __init__(self, max_num_waiting: int = 0) -> None:
        self.clock = Clock()
        self.admission = Admission(max_num_waiting, self.clock)
        self.unbegun: list[Request] = []

    def submit(self, num_requests: int) -> list[Request]:
        requests = new_requests(num_requests)
        self.admission.submitted(requests)
        self.unbegun += requests
        return requests

    def begin(self, num_requests: int) -> None:
        """One step: the engine begins that many and the service hears of it."""
        for request in self.unbegun[:num_requests]:
            request.admitted_at = self.clock.now
        del self.unbegun[:num_requests]
        self.admission.settle()

    def drain(self, *, every_s: float, for_s: float, together: int = 1) -> None:
        """`together` leave and as many come, every `every_s`; the queue keeps its length."""
        for _ in range(round(for_s / every_s)):
            self.clock.now += every_s
            self.begin(together)
            self.submit(together)


def test_past_the_bound_is_overloaded_and_counts_nothing() -> None:
    queue = Queue(max_num_waiting=3)
    queue.submit(2)
    queue.admission.admit(1)
    with pytest.raises(Overloaded, match="waiting"):
        queue.admission.admit(2)
    assert queue.admission.num_waiting == 2
    queue.begin(1)
    queue.admission.admit(2)


def test_admit_hears_of_what_began_since_the_last_step() -> None:
    queue = Queue(max_num_waiting=1)
    [request] = queue.submit(1)
    request.admitted_at = queue.clock.now
    queue.admission.admit(1)
    assert queue.admission.num_waiting == 0


def test_more_choices_than_the_bound_are_taken_behind_nobody() -> None:
    queue = Queue(max_num_waiting=4)
    queue.admission.admit(128)
    queue.submit(1)
    with pytest.raises(Overloaded):
        queue.admission.admit(128)


def test_no_bound_refuses_nobody() -> None:
    queue = Queue(max_num_waiting=0)
    queue.submit(10_000)
    queue.admission.admit(128)
    assert queue.admission.num_waiting == 10_000


def test_aborted_and_failed_requests_leave_once() -> None:
    queue = Queue(max_num_waiting=3)
    first, second, third = (request.id for request in queue.submit(3))
    queue.admission.ended([first, second])
    queue.admission.ended([first, RequestId("unknown")])
    assert queue.admission.num_waiting == 1
    queue.begin(3)
    queue.admission.ended([third])
    assert queue.admission.num_waiting == 0


@pytest.mark.parametrize("rate", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("together", [1, 4])
def test_retry_after_is_the_time_the_queue_takes_to_drain(rate: float, together: int) -> None:
    """Also when they leave in clumps, as they do when a batch ends."""
    queue = Queue()
    queue.submit(24)
    queue.drain(every_s=together / rate, for_s=3 * WINDOW_S, together=together)
    assert queue.admission.retry_after_s() == pytest.approx(24 / rate, rel=0.15)


def test_the_estimate_is_right_long_before_the_window_is_full() -> None:
    queue = Queue()
    queue.submit(10)
    queue.drain(every_s=0.5, for_s=3)
    assert queue.admission.retry_after_s() == pytest.approx(5, rel=0.1)


def test_aborts_drain_the_queue_too() -> None:
    queue = Queue()
    queue.submit(10)
    for _ in range(20):
        queue.clock.now += 0.5
        gone = queue.unbegun.pop(0)
        queue.admission.ended([gone.id])
        queue.submit(1)
    assert queue.admission.retry_after_s() == pytest.approx(5, rel=0.1)


def test_a_changed_rate_is_followed() -> None:
    queue = Queue()
    queue.submit(10)
    queue.drain(every_s=0.2, for_s=2 * WINDOW_S)
    quick = queue.admission.retry_after_s()
    queue.drain(every_s=2, for_s=3 * WINDOW_S)
    assert quick == pytest.approx(2, rel=0.15)
    assert queue.admission.retry_after_s() == pytest.approx(20, rel=0.35)


def test_quiet_hours_are_not_a_slow_engine() -> None:
    queue = Queue()
    queue.submit(10)
    queue.drain(every_s=0.5, for_s=WINDOW_S)
    for _ in range(10):
        queue.clock.now += 0.5
        queue.begin(1)
    queue.clock.now += 36_000
    queue.submit(10)
    assert queue.admission.retry_after_s() == pytest.approx(5, rel=0.15)


def test_a_stalled_engine_sends_people_away_for_longer_and_longer_up_to_a_minute() -> None:
    queue = Queue()
    queue.submit(10)
    queue.drain(every_s=0.5, for_s=WINDOW_S)
    estimates = []
    for _ in range(20):
        queue.clock.now += 10
        estimates.append(queue.admission.retry_after_s())
    assert estimates == sorted(estimates)
    assert estimates[-1] == LONGEST_RETRY_AFTER_S


def test_before_anybody_left_the_estimate_is_within_its_bounds() -> None:
    queue = Queue()
    queue.submit(256)
    assert queue.admission.retry_after_s() == SHORTEST_RETRY_AFTER_S
    queue.clock.now += 100
    assert queue.admission.retry_after_s() == LONGEST_RETRY_AFTER_S


class Engine:
    """The real scheduler over a pool so small that it preempts, and an admission told what the service tells it."""

    def __init__(self) -> None:
        config = EngineConfig(block_size=4, num_blocks=8, max_num_batched_tokens=16, max_num_seqs=3)
        self.scheduler = Scheduler(config, BlockPool(config.num_blocks, config.block_size))
        self.runner = FakeRunner(config.num_blocks, config.block_size, vocab_size=50)
        self.admission = Admission(0)
        self.requests: list[Request] = []

    @property
    def num_unbegun(self) -> int:
        """Independently: what waits for the scheduler and was never admitted."""
        return sum(request.num_cached_tokens is None for request in self.scheduler.waiting)

    def submit(self, prompt: list[int], num_choices: int, max_tokens: int) -> None:
        requests = new_requests(num_choices, prompt, max_tokens)
        self.admission.submitted(requests)
        for request in requests:
            self.scheduler.add(request)
        self.requests += requests

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        self.scheduler.commit(schedule, self.runner.execute(schedule))
        self.admission.settle()

    def fail(self) -> None:
        """A step that raises after it was planned: whoever runs is lost."""
        self.scheduler.schedule()
        lost = self.scheduler.fail_running()
        self.admission.settle()
        self.admission.ended(request.id for request in lost)

    def abort(self, which: int) -> None:
        request = self.requests[which % len(self.requests)]
        self.scheduler.abort(request.id)
        self.admission.ended([request.id])


def test_a_preempted_request_does_not_wait_again() -> None:
    engine = Engine()
    engine.submit([1, 2, 3, 4, 5, 6, 7], num_choices=1, max_tokens=12)
    engine.submit([9, 8, 7, 6, 5, 4, 3], num_choices=1, max_tokens=12)
    engine.submit([5, 5, 5, 5, 5, 5, 5], num_choices=1, max_tokens=12)
    while not engine.scheduler.num_preemptions:
        engine.step()
        assert engine.admission.num_waiting == engine.num_unbegun
    assert len(engine.scheduler.waiting) > engine.num_unbegun == engine.admission.num_waiting


prompts = st.lists(st.integers(1, 3), min_size=1, max_size=9)
moves = st.one_of(
    st.tuples(st.just("submit"), prompts, st.integers(1, 4), st.integers(1, 8)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(st.just("abort"), st.integers(0, 99)),
    st.tuples(st.just("fail")),
)


@given(st.lists(moves, max_size=40))
def test_the_count_is_what_the_engine_has_not_begun(story: list[tuple[object, ...]]) -> None:
    engine = Engine()
    for move, *arguments in story:
        if move != "abort" or engine.requests:
            getattr(engine, str(move))(*arguments)
        assert engine.admission.num_waiting == engine.num_unbegun
    for _ in range(500):
        if not engine.scheduler.has_work:
            break
        engine.step()
    assert engine.admission.num_waiting == engine.num_unbegun == 0
