"""A prompt beside streams slows them down by a known factor, on machines of any speed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from sessions.engine.pace import LEAST_PROMPT_TOKENS, MAX_BESIDE, Pace
from sessions.engine.schedule import Schedule, Scheduled
from tests.unit.engine.bench import Bench, expected

STREAM_S = 0.01
"""A step of streams alone."""
BUDGET = 256


@dataclass
class Machine:
    """A clock that steps move: so long for the streams, so long for each prompt token."""

    token_s: float
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def cost(self, schedule: Schedule) -> float:
        num_prompt_tokens = sum(entry.num_tokens for entry in schedule.entries if not entry.is_stream)
        has_streams = any(entry.is_stream for entry in schedule.entries)
        return STREAM_S * has_streams + self.token_s * num_prompt_tokens


def steps_beside_streams(machine: Machine, *, max_slowdown: float, prompt: int = 900) -> list[float]:
    """Seconds of each step that computes a part of a long prompt beside two streams."""
    bench = Bench(
        clock=machine, max_slowdown=max_slowdown, num_blocks=1000, max_num_batched_tokens=BUDGET, max_model_len=2000
    )
    execute = bench.runner.execute

    def timed(schedule: Schedule) -> object:
        machine.now += machine.cost(schedule)
        return execute(schedule)

    bench.runner.execute = timed  # type: ignore[method-assign, assignment]
    for first in (1, 2):
        bench.add([first] * 40, max_tokens=300)
    for _ in range(20):
        bench.step()
    late = bench.add(list(range(3, 49)) * (prompt // 46), max_tokens=2)
    seconds = []
    while not late.num_output_tokens:
        started_at = machine.now
        bench.step()
        seconds.append(machine.now - started_at)
    bench.run()
    assert [request.token_ids for request in bench.requests] == [expected(request) for request in bench.requests]
    return seconds


@pytest.mark.parametrize("token_s", [0.00001, 0.0001, 0.0005])
@pytest.mark.parametrize("max_slowdown", [1.5, 2.5, 4])
def test_no_gap_is_longer_than_allowed(token_s: float, max_slowdown: float) -> None:
    least_s = STREAM_S + LEAST_PROMPT_TOKENS * token_s
    longest_s = max(steps_beside_streams(Machine(token_s), max_slowdown=max_slowdown))
    assert longest_s <= max(max_slowdown * STREAM_S, least_s) * 1.001


def test_what_is_allowed_is_used() -> None:
    """25 ms allowed, 10 are the streams', so 150 tokens of 0.1 ms fit; the first and last step have fewer."""
    seconds = steps_beside_streams(Machine(0.0001), max_slowdown=2.5)
    assert len(seconds) == -(-874 // 150)
    assert seconds[2] == pytest.approx(2.5 * STREAM_S, rel=0.01)


def test_under_load_that_never_ends_the_usual_gap_is_measured_anew() -> None:
    """One stream's step was 10 ms; eight streams' is 60, so that 90 ms are for prompts, at 0.5 ms a token."""
    pace, request = Pace(2.5), Bench().add([1], max_tokens=9)
    prompt = Scheduled(Bench().add([1], max_tokens=1), 0, 1)
    request.append(1)
    stream = Scheduled(request, 1, 1)
    pace.observe(Schedule([stream]), 0.010)
    allowed = []
    for _ in range(10 * MAX_BESIDE):
        allowed.append(pace.num_prompt_tokens(BUDGET))
        beside = [replace(prompt, num_tokens=allowed[-1])] if allowed[-1] else []
        pace.observe(Schedule([stream] * 8 + beside), 0.060 + 0.0005 * allowed[-1])
    assert max(allowed[:MAX_BESIDE]) < 32, "as long as it is not"
    assert allowed[MAX_BESIDE + 6] == pytest.approx(180, abs=2), "what was known before counts no more"
    assert allowed[-1] == pytest.approx(180, abs=2)
    assert allowed.count(0) == 9


def test_without_a_bound_a_step_takes_the_whole_budget() -> None:
    seconds = steps_beside_streams(Machine(0.0005), max_slowdown=0)
    assert max(seconds) == pytest.approx(STREAM_S + 0.0005 * (BUDGET - 2))


def test_a_slow_machine_still_gets_on() -> None:
    seconds = steps_beside_streams(Machine(0.01), max_slowdown=1.5, prompt=92)
    assert len(seconds) == -(-92 // LEAST_PROMPT_TOKENS)


def test_alone_a_prompt_has_the_whole_budget() -> None:
    bench = Bench(max_slowdown=2.5, num_blocks=100, max_num_batched_tokens=BUDGET, max_model_len=300)
    bench.add(list(range(40)) * 5, max_tokens=1)
    assert [entry.num_tokens for entry in bench.step().entries] == [200]


def test_prompt_tokens_that_get_dearer_are_noticed_in_three_steps_and_a_pause_is_none() -> None:
    """Streams take 10 ms of 25 that are allowed."""
    step = stepper(Pace(2.5))
    step(0, 0)
    assert [step(100, 0.0001) for _ in range(5)][-1] == pytest.approx(150, abs=1)
    assert step(100, 0.1) == pytest.approx(150, abs=1)
    assert [step(100, 0.0002) for _ in range(3)] == pytest.approx([150, 75, 75], abs=1)


def test_tokens_that_seemed_to_cost_nothing_get_their_price() -> None:
    step = stepper(Pace(2.5))
    step(0, 0)
    assert step(100, -0.00001) == BUDGET, "a step that was quicker than those without a prompt"
    assert [step(100, 0.0002) for _ in range(2)][-1] == pytest.approx(75, abs=1)


def stepper(pace: Pace) -> Callable[[int, float], int]:
    """A step of a stream, 10 ms, and of so many prompt tokens at so many seconds each -> what the next may have."""
    request = Bench().add([1], max_tokens=9)
    prompt = Scheduled(Bench().add([1], max_tokens=1), 0, 1)
    request.append(1)
    stream = Scheduled(request, 1, 1)

    def step(num_tokens: int, token_s: float) -> int:
        beside = [replace(prompt, num_tokens=num_tokens)] if num_tokens else []
        pace.observe(Schedule([stream, *beside]), 0.010 + num_tokens * token_s)
        return pace.num_prompt_tokens(BUDGET)

    return step
