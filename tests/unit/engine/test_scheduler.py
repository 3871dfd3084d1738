"""The scheduler over the fake model: whatever it does, every completion is the one a lone, uncached request gets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.bench import Bench, expected, shared_content


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
    size = data.draw(st.integers(1, 5))
    bench = Bench(
        shared_content(data.draw(st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=2)), size),
        num_blocks=data.draw(st.integers(8, 24)),
        block_size=size,
        max_num_seqs=data.draw(st.integers(1, 4)),
        max_num_batched_tokens=data.draw(st.integers(4, 12)),
        max_num_draft_tokens=data.draw(st.integers(0, 4)),
    )
    aborted = set()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "add", "continue", "step", "step", "abort"]))
        finished = [r for r in bench.requests if r.status.value == "finished" and r.id not in aborted]
        room = bench.config.pool_tokens - 1
        if action == "add":
            prompt = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=max(1, min(14, room - 6))))
            most = data.draw(st.integers(1, 6))
            root, eos = data.draw(st.sampled_from([b"a", b"b"])), data.draw(st.sampled_from([(), (7,), (0, 1, 2)]))
            bench.add(prompt[: room - most] or [1], max_tokens=most, root=root, eos=eos)
        elif action == "continue" and finished:
            past = data.draw(st.sampled_from(finished))
            if past.num_tokens + 5 <= room:
                again = [*past.token_ids, 1] if data.draw(st.booleans()) else past.token_ids[: past.num_prompt_tokens]
                bench.add(again, max_tokens=4, root=past.chain.root[:1])
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
