"""Scores: of the unmodified distribution, each row as if it were alone, each kept token's own row."""

import torch

from sessions.engine.request import Request
from sessions.engine.sampler import sample
from sessions.engine.schedule import Draw
from sessions.engine.scoring import ROWS_AT_ONCE, log_probabilities, score, score_prompt
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

VOCABULARY = 50_000


def rows_of(count: int) -> torch.Tensor:
    return torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3


def test_a_score_is_the_log_softmax_of_the_row() -> None:
    rows = rows_of(2)
    first, second = score(log_probabilities(rows, [0, 1]), [5, 7], [3, 0])
    exact = torch.log_softmax(rows.double(), -1)
    assert abs(first.logprob - float(exact[0, 5])) < 1e-5
    assert [token_id for token_id, _ in first.top] == exact[0].topk(3).indices.tolist()
    assert first.top[0][1] >= first.top[1][1] >= first.top[2][1]
    assert (second.token_id, second.top) == (7, ())


def test_no_digit_depends_on_the_neighbours_or_on_what_they_ask() -> None:
    rows = rows_of(ROWS_AT_ONCE + 3)
    ids = list(range(len(rows)))
    together = score_prompt(rows, ids, [20] * len(rows))
    for row in range(len(rows)):
        (alone,) = score(log_probabilities(rows[row : row + 1].clone(), [0]), [row], [4])
        assert (alone.logprob, alone.top) == (together[row].logprob, together[row].top[:4])


def draw(params: SamplingParams, prompt: list[int], drafts: tuple[int, ...] = ()) -> Draw:
    chain = HashChain(BlockHash(b"r" * 16), 16)
    return Draw(0, Request(RequestId("r"), prompt, chain, params, 5, frozenset(), 0), drafts)


def test_scores_are_taken_before_sampling_changes_the_logits() -> None:
    rows = rows_of(1)
    before = log_probabilities(rows, [0])
    sample(rows, [draw(SamplingParams(logit_bias=((3, 100.0),)), [1])])
    assert torch.equal(before, torch.log_softmax(rows_of(1), -1))


def test_a_repetition_penalty_counts_prompt_output_and_drafts() -> None:
    """transformers: a positive logit is divided, a negative one multiplied."""
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    logits = torch.tensor([[4.0, 3.0, 2.5, -1.0]])
    assert sample(logits.clone(), [draw(SamplingParams(temperature=0), [0])]) == [0]
    assert sample(logits.clone(), [draw(params, [0])]) == [1]
    assert sample(logits.clone(), [draw(params, [0], (1,))]) == [2]
    said = draw(params, [0])
    said.request.append(1)
    assert sample(logits.clone(), [said]) == [2]
    worse = torch.tensor([[-1.0, -1.5]])
    assert sample(worse, [draw(params, [0])]) == [1]
