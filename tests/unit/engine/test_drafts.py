"""Drafts: never another token, fewer steps where guesses are right, few wasted where they are wrong."""

import pytest
import torch

from sessions.engine.drafts import LONGEST_PAUSE, MAX_DRAFTING_SEQS, Drafter
from sessions.engine.request import Request
from sessions.engine.runner import verified
from sessions.engine.sampler import sample
from sessions.engine.schedule import Draw
from sessions.types import SamplingParams
from tests.unit.engine.bench import VOCABULARY, Bench, expected


def num_steps(bench: Bench) -> int:
    count = 0
    while bench.scheduler.has_work:
        bench.step()
        count += 1
    return count


@pytest.mark.parametrize("length", range(3, 13))
def test_a_regenerated_answer_comes_in_a_quarter_of_the_steps(length: int) -> None:
    bench = Bench(max_num_draft_tokens=3)
    first = bench.add(list(range(length)), max_tokens=20)
    assert num_steps(bench) >= 20
    again = bench.add(list(range(length)), max_tokens=20)
    assert num_steps(bench) == 5
    assert again.token_ids == first.token_ids == expected(again)
    assert bench.scheduler.drafter.num_accepted_tokens == 15


def test_drafts_off_is_one_token_a_step() -> None:
    bench = Bench(max_num_draft_tokens=0)
    for _ in range(2):
        bench.add([1, 2, 3], max_tokens=8)
        assert num_steps(bench) == 8
    assert bench.scheduler.drafter.num_draft_tokens == 0


def test_a_draft_past_the_end_of_sequence_is_dropped() -> None:
    bench = Bench(max_num_draft_tokens=4)
    first = bench.add([1, 2, 3], max_tokens=12)
    bench.run()
    end = first.token_ids[5]
    again = bench.add([1, 2, 3], max_tokens=12, eos=[end])
    bench.run()
    assert again.token_ids == expected(again)
    assert again.token_ids[-1] == end and again.num_tokens <= 6
    longer = bench.add([*again.token_ids, 9], max_tokens=1)
    bench.run()
    assert longer.num_cached_tokens == again.num_tokens, "the last token was a right draft: its KV is there"


def test_another_tenants_answer_is_no_draft() -> None:
    bench = Bench()
    bench.add([1, 2, 3], max_tokens=8, root=b"a")
    bench.run()
    before = bench.scheduler.drafter.num_draft_tokens
    bench.add([1, 2, 3], max_tokens=8, root=b"b")
    assert num_steps(bench) == 8
    assert bench.scheduler.drafter.num_draft_tokens == before


def test_many_requests_do_not_draft() -> None:
    bench = Bench(num_blocks=128, max_num_batched_tokens=64)
    bench.add([1, 2, 3], max_tokens=8)
    bench.run()
    for index in range(MAX_DRAFTING_SEQS + 1):
        bench.add([1, 2, 3], max_tokens=8, root=b"r" if index else b"x")
    before = bench.scheduler.drafter.num_draft_tokens
    bench.step()
    bench.step()
    assert len(bench.scheduler.running) == MAX_DRAFTING_SEQS + 1
    assert bench.scheduler.drafter.num_draft_tokens == before


def request_of(bench: Bench, token_ids: list[int]) -> Request:
    return bench.add(token_ids, max_tokens=50)


@pytest.mark.parametrize(
    ("token_ids", "drafts"),
    [
        ([1, 2, 3, 4, 5, 9, 1, 2, 3], (4, 5, 9)),
        ([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], (8, 1, 2)),
        ([5, 5, 5, 5], (5, 5, 5)),
        ([9, 1, 2, 1, 2, 1], (2, 1, 2)),
        ([1, 2, 3, 4, 5, 6], ()),
        ([1, 2, 3], ()),
        ([0x01000000, 0, 0, 0x0100, 1, 0, 0, 0x01], ()),
        ([2**24, 1, 2, 3, 2**24 + 1, 1, 2, 3], (2**24 + 1, 1, 2)),
    ],
)
def test_prompt_lookup(token_ids: list[int], drafts: tuple[int, ...]) -> None:
    bench = Bench(num_blocks=64)
    assert Drafter(bench.scheduler.pool, 3).propose(request_of(bench, token_ids), 8) == drafts


def test_wrong_drafts_pause_longer_and_longer_and_a_right_one_ends_it() -> None:
    bench = Bench(num_blocks=64)
    drafter, request = Drafter(bench.scheduler.pool, 3), request_of(bench, [1, 2, 3, 4, 1, 2, 3])
    pauses = []
    for _ in range(8):
        assert drafter.propose(request, 8)
        drafter.observe(request, 3, 0)
        pause = 0
        while not drafter.propose(request, 8):
            pause += 1
        pauses.append(pause)
    assert pauses == [1, 3, 7, 15, 31, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    drafter.observe(request, 3, 1)
    assert drafter.propose(request, 8)


def test_the_limit_leaves_room_for_the_token_that_is_drawn_anyway() -> None:
    bench = Bench()
    request = bench.add([1, 1, 1, 1, 1, 1], max_tokens=3)
    drafter = Drafter(bench.scheduler.pool, 8)
    assert len(drafter.propose(request, 8)) == 2
    assert len(drafter.propose(request, 1)) == 1
    assert drafter.propose(request, 0) == ()


@pytest.mark.parametrize(
    ("drafts", "drawn", "kept"),
    [((), (5,), (5,)), ((5, 6), (5, 6, 7), (5, 6, 7)), ((5, 6), (5, 9, 7), (5, 9)), ((5, 6), (4, 6, 7), (4,))],
)
def test_verified(drafts: tuple[int, ...], drawn: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert verified(drafts, drawn) == kept


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.9, top_p=0.8), SamplingParams(frequency_penalty=1.5)])
def test_a_draw_after_drafts_is_the_draw_after_the_same_tokens(params: SamplingParams) -> None:
    """The same seed, position and counts: what is drawn does not know whether the tokens before it were guesses."""
    bench = Bench()
    known = bench.add([1, 2, 3, 4], params=params)
    grown = bench.add([1, 2, 3, 4], params=params)
    drafts = (7, 7, 9)
    for token_id in drafts:
        grown.append(token_id)
    if params.frequency_penalty:
        assert grown.output_counts == {7: 2, 9: 1}
    for seed in range(20):
        known.seed = grown.seed = seed
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        guessed, sure = Draw(0, known, drafts), Draw(0, grown, ())
        assert sample(logits.clone(), [guessed]) == sample(logits.clone(), [sure])


def test_a_right_prediction_comes_in_a_quarter_of_the_steps_and_is_counted() -> None:
    plain = Bench(max_num_draft_tokens=3)
    answer = plain.add([1, 2, 3], max_tokens=20)
    plain.run()
    bench = Bench(max_num_draft_tokens=3)
    request = bench.add([1, 2, 3], max_tokens=20, prediction=answer.token_ids[3:])
    assert num_steps(bench) == 5
    assert request.token_ids == answer.token_ids
    assert (request.num_accepted_prediction_tokens, request.num_rejected_prediction_tokens) == (15, 0)


def test_a_prediction_that_errs_in_the_middle_is_found_again_after_it() -> None:
    plain = Bench(max_num_draft_tokens=0)
    answer = plain.add([1, 2, 3], max_tokens=40)
    plain.run()
    output = answer.token_ids[3:]
    bench = Bench(max_num_draft_tokens=3)
    request = bench.add([1, 2, 3], max_tokens=40, prediction=[*output[:12], 49, 49, 49, *output[12:]])
    assert num_steps(bench) < 25
    assert request.token_ids == answer.token_ids
    assert request.num_accepted_prediction_tokens > 20
    assert request.num_rejected_prediction_tokens > 0


def test_a_wrong_prediction_changes_nothing() -> None:
    bench = Bench(max_num_draft_tokens=3)
    request = bench.add([1, 2, 3], max_tokens=20, prediction=[49] * 30)
    bench.run()
    assert request.token_ids == expected(request)
    assert request.num_accepted_prediction_tokens == 0
    assert request.num_rejected_prediction_tokens >= 3
