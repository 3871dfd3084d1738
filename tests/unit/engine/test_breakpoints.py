"""Explicit caching in the scheduler: what is read and written ends at the exact token, and never gives a wrong one."""

from hypothesis import given
from hypothesis import strategies as st

from sessions.engine.request import Request
from tests.unit.engine.bench import Bench, expected

PROMPT = list(range(1, 24))


def ask(
    bench: Bench,
    prompt: list[int],
    read_points: tuple[int, ...] | None = None,
    write_limit: int | None = None,
    max_tokens: int = 4,
) -> Request:
    request = bench.add(prompt, max_tokens)
    request.read_points, request.write_limit = read_points, write_limit
    bench.run()
    if max_tokens:
        assert request.token_ids == expected(request)
    return request


def test_what_is_written_ends_at_the_breakpoint_s_token() -> None:
    for limit in range(len(PROMPT) + 1):
        bench = Bench()
        ask(bench, PROMPT, (), limit)
        assert ask(bench, PROMPT).num_cached_tokens == min(limit, len(PROMPT) - 1)
        assert ask(bench, [*PROMPT[:limit], 99, 98], max_tokens=1).num_cached_tokens == limit


def test_what_is_read_ends_at_a_breakpoint_that_is_stored() -> None:
    for point in range(len(PROMPT)):
        bench = Bench()
        ask(bench, PROMPT)
        assert ask(bench, PROMPT, (point,)).num_cached_tokens == point
        assert ask(bench, PROMPT[:10] + [99] * 8, (2, 7, 14)).num_cached_tokens == 7


def test_without_a_breakpoint_nothing_is_read_or_written() -> None:
    bench = Bench()
    ask(bench, PROMPT)
    stored = bench.scheduler.pool.num_cached_blocks
    again = ask(bench, [*PROMPT, 77, 78, 79, 80, 81], (), 0)
    assert again.num_cached_tokens == 0
    assert bench.scheduler.pool.num_cached_blocks == stored
    assert ask(bench, [*PROMPT, 77, 78, 79, 80, 81]).num_cached_tokens == len(PROMPT)


def test_a_warm_up_computes_the_prompt_and_says_nothing() -> None:
    bench = Bench()
    warm = ask(bench, PROMPT, max_tokens=0)
    assert warm.num_output_tokens == 0
    assert ask(bench, [*PROMPT, 99]).num_cached_tokens == len(PROMPT)
    assert ask(bench, PROMPT, max_tokens=0).num_cached_tokens == len(PROMPT) - 1


def test_who_may_not_read_does_not_wait_for_the_same_prompt_beside_it() -> None:
    bench = Bench(max_num_batched_tokens=64)
    first, second = bench.add(PROMPT), bench.add(PROMPT)
    second.read_points, second.write_limit = (), 0
    bench.step()
    assert first in bench.scheduler.running and second in bench.scheduler.running
    bench.run()
    assert first.token_ids == second.token_ids


points = st.one_of(st.none(), st.sets(st.integers(0, 30)).map(lambda found: tuple(sorted(found))))
asked = st.tuples(
    st.integers(1, 23), st.lists(st.integers(40, 41), max_size=6), points, st.one_of(st.none(), st.integers(0, 30))
)


@given(requests=st.lists(asked, min_size=1, max_size=8), num_blocks=st.integers(14, 40), at_once=st.booleans())
def test_any_breakpoints_give_the_same_answers(
    requests: list[tuple[int, list[int], tuple[int, ...] | None, int | None]], num_blocks: int, at_once: bool
) -> None:
    bench = Bench(num_blocks=num_blocks)
    for length, more, read_points, write_limit in requests:
        request = bench.add(PROMPT[:length] + more)
        request.read_points, request.write_limit = read_points, write_limit
        if not at_once:
            bench.run()
    bench.run()
    for request in bench.requests:
        assert request.token_ids == expected(request)
        if request.read_points is not None:
            assert request.num_cached_tokens in (0, *request.read_points)
