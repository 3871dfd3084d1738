"""The sampler: every row as if it were alone, and the distribution that its parameters say. By torch and by kernels."""

from collections import Counter

import pytest
import torch

from sessions.engine.native.draw import NativePick
from sessions.engine.native.kernels import Kernels
from sessions.engine.request import Request
from sessions.engine.sampler import Pick, pick_by_torch, sample
from sessions.engine.schedule import Draw
from sessions.hashing import HashChain
from sessions.types import BlockHash, RequestId, SamplingParams

VOCABULARY = 300


@pytest.fixture(params=["torch", "kernels"])
def pick(request: pytest.FixtureRequest) -> Pick:
    return pick_by_torch if request.param == "torch" else NativePick(request.getfixturevalue("kernels"))


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
def test_a_row_does_not_know_its_neighbours(params: SamplingParams, neighbour: SamplingParams, pick: Pick) -> None:
    for seed in range(30):
        row = logits_of(seed)
        (alone,) = sample(row[None].clone(), [draw(seed, params)], pick=pick)
        both = torch.stack([logits_of(seed + 100), row])
        assert sample(both, [draw(seed + 1, neighbour), draw(seed, params)], pick=pick)[1] == alone


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-10, 1e-4])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_tiny_temperature_is_greedy(temperature: float, top_p: float, pick: Pick) -> None:
    for seed in range(10):
        row, params = logits_of(seed), SamplingParams(temperature=temperature, top_p=top_p)
        assert sample(row[None].clone(), [draw(seed, params)], pick=pick) == [int(row.argmax())]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [(SamplingParams(top_k=2), 2), (SamplingParams(top_p=0.55), 2), (SamplingParams(min_p=0.5), 2)],
)
def test_filters_cut_the_tail(params: SamplingParams, allowed: int, pick: Pick) -> None:
    row = torch.log(torch.tensor([0.3, 0.4, 0.1, 0.15, 0.05]))
    drawn = {sample(row[None].clone(), [draw(seed, params)], pick=pick)[0] for seed in range(200)}
    assert drawn == {0, 1} and len(drawn) == allowed


def test_draws_follow_the_probabilities(pick: Pick) -> None:
    probabilities = torch.tensor([0.5, 0.2, 0.3])
    count = 4000
    rows = torch.log(probabilities).repeat(count, 1)
    drawn = torch.tensor(sample(rows, [draw(seed, SamplingParams()) for seed in range(count)], pick=pick))
    share = torch.bincount(drawn, minlength=3) / count
    torch.testing.assert_close(share, probabilities, atol=0.03, rtol=0)


FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.3),
    SamplingParams(top_k=1),
    SamplingParams(top_k=40),
    SamplingParams(top_k=5000),
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=1e-6),
    SamplingParams(min_p=0.02),
    SamplingParams(temperature=1.7, top_k=100, top_p=0.8, min_p=0.001),
]


@pytest.mark.parametrize("width", [5, 300, 4096, 50_001])
@pytest.mark.parametrize("params", FILTERS)
def test_kernels_draw_what_torch_draws(params: SamplingParams, width: int, kernels: Kernels) -> None:
    rows = torch.randn(40, width, generator=torch.Generator().manual_seed(width)) * 3
    rows[::2] = rows[::2].round()  # many of the same weight: they are drawn in the order of their ids
    rows[::3, ::4] = -torch.inf
    draws = [draw(seed, params) for seed in range(40)]
    wanted, got = pick_by_torch(rows.clone(), draws), NativePick(kernels)(rows, draws)
    # A uniform number may fall within rounding of the line between two tokens.
    assert sum(one != other for one, other in zip(wanted, got, strict=True)) <= (1 if width > 4096 else 0)


def test_kernels_take_the_first_of_the_largest(kernels: Kernels) -> None:
    rows = torch.zeros(3, 77)
    rows[1, [70, 76]] = 1.0
    rows[2, 76] = 1.0
    assert NativePick(kernels)(rows, [draw(1, SamplingParams(temperature=0))] * 3) == [0, 70, 76]


@pytest.mark.parametrize("params", FILTERS)
@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_kernels_draw_some_token_from_broken_logits(value: float, params: SamplingParams, kernels: Kernels) -> None:
    rows = torch.stack([torch.full((33,), value), torch.zeros(33), torch.zeros(33)])
    rows[1, 32] = rows[2, 0] = value
    assert all(0 <= token_id < 33 for token_id in NativePick(kernels)(rows, [draw(1, params)] * 3))


@pytest.mark.parametrize("params", FILTERS)
def test_kernels_draw_in_proportion(params: SamplingParams, kernels: Kernels) -> None:
    row = torch.log(torch.tensor([0.12, 0.4, 0.0, 0.3, 0.18]))
    count = 3000
    rows, draws = row.repeat(count, 1), [draw(seed, params) for seed in range(count)]
    drawn, wanted = Counter(NativePick(kernels)(rows, draws)), Counter(pick_by_torch(rows.clone(), draws))
    assert drawn == wanted and 2 not in drawn


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), SamplingParams(min_p=1)])
def test_the_likeliest_alone_is_the_largest_logit_to_the_last_bit(params: SamplingParams, kernels: Kernels) -> None:
    row = torch.full((1, 40), 0.1)
    row[0, 33] = torch.nextafter(row[0, 33], torch.tensor(1.0))
    assert NativePick(kernels)(row, [draw(1, params)]) == [33]
