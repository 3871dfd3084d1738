"""The sampler: every row as if it were alone, and the distribution that its parameters say."""

import pytest
import torch

from sessions.engine.request import Request
from sessions.engine.sampler import sample
from sessions.engine.schedule import Draw
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

VOCABULARY = 300


def draw(seed: int, params: SamplingParams) -> Draw:
    request = Request(RequestId("r"), [1, 2, 3], HashChain(BlockHash(b"r" * 16), 16), params, 5, frozenset(), seed)
    return Draw(0, request, ())


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize(
    "neighbour",
    [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=2, presence_penalty=1, logit_bias=((3, 50.0),)),
    ],
)
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_k=7), SamplingParams(top_p=0.7)])
def test_a_row_does_not_know_its_neighbours(params: SamplingParams, neighbour: SamplingParams) -> None:
    for seed in range(30):
        row = logits_of(seed)
        (alone,) = sample(row[None].clone(), [draw(seed, params)])
        both = torch.stack([logits_of(seed + 100), row])
        assert sample(both, [draw(seed + 1, neighbour), draw(seed, params)])[1] == alone


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-10, 1e-4])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_tiny_temperature_is_greedy(temperature: float, top_p: float) -> None:
    for seed in range(10):
        row = logits_of(seed)
        assert sample(row[None].clone(), [draw(seed, SamplingParams(temperature=temperature, top_p=top_p))]) == [
            int(row.argmax())
        ]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [(SamplingParams(top_k=2), 2), (SamplingParams(top_p=0.55), 2), (SamplingParams(min_p=0.5), 2)],
)
def test_filters_cut_the_tail(params: SamplingParams, allowed: int) -> None:
    row = torch.log(torch.tensor([0.3, 0.4, 0.1, 0.15, 0.05]))
    drawn = {sample(row[None].clone(), [draw(seed, params)])[0] for seed in range(200)}
    assert drawn == {0, 1} and len(drawn) == allowed


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.3])
    count = 4000
    rows = torch.log(probabilities).repeat(count, 1)
    drawn = torch.tensor(sample(rows, [draw(seed, SamplingParams()) for seed in range(count)]))
    share = torch.bincount(drawn, minlength=3) / count
    torch.testing.assert_close(share, probabilities, atol=0.03, rtol=0)
