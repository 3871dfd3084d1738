"""Scores by the oracle: `log_softmax` of the model's own logits over the finished text, however they were computed."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sessions.engine.loaded import LoadedModel
from sessions.engine.native.kernels import load_kernels
from sessions.engine.request import Request, RequestOutput, TokenScore
from sessions.types import SamplingParams
from tests.oracle import SERVED, Bench, Oracle, cache_dir, tiny_model, tiny_prompts

NUM_TOP = 3
TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=["torch", "kernels"])
def model(request: pytest.FixtureRequest) -> tuple[Any, LoadedModel]:
    own, served = (tiny_model("llama", SERVED["llama"]) for _ in range(2))  # preparing one changes it
    kernels, reason = load_kernels(cache_dir()) if request.param == "kernels" else (None, "")
    if request.param == "kernels" and kernels is None:
        pytest.skip(reason)
    return own, Oracle(served).prepare(kernels)


class ScoringBench(Bench):
    """Keeps every output."""

    def __init__(self, loaded: LoadedModel, **config: int) -> None:
        super().__init__(loaded, **config)
        self.outputs: dict[str, list[RequestOutput]] = {}

    def ask(self, prompt: list[int], *, scores_prompt: bool = True, **params: Any) -> Request:
        added = self.add(prompt)
        self.scheduler.waiting.pop()
        request = replace(
            added,
            params=SamplingParams(**({"temperature": 0, "num_logprobs": NUM_TOP} | params)),
            wants_prompt_scores=scores_prompt,
            read_points=() if scores_prompt else None,
        )
        self.scheduler.add(request)
        return request

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        assert schedule.entries, "a step without progress: the requests do not fit the pool"
        for output in self.scheduler.commit(schedule, self.runner.execute(schedule)):
            self.outputs.setdefault(output.request_id, []).append(output)
        self.scheduler.check_integrity()

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()

    def scores(self, request: Request) -> tuple[tuple[TokenScore, ...], list[TokenScore]]:
        """Of the prompt, with the output that completed it first; and of the output."""
        outputs = self.outputs[request.id]
        return outputs[0].prompt_scores, [score for output in outputs for score in output.scores]


@torch.inference_mode()
def assert_right(model: Any, bench: ScoringBench, request: Request, *, has_prompt: bool = True) -> None:
    exact = torch.log_softmax(model(torch.tensor([request.token_ids])).logits[0].double(), -1)
    prompt_scores, output_scores = bench.scores(request)
    first = 0 if has_prompt else request.num_prompt_tokens - 1
    assert len(prompt_scores) == (request.num_prompt_tokens - 1 if has_prompt else 0)
    for row, score in enumerate([*prompt_scores, *output_scores], first):
        assert score.token_id == request.token_ids[row + 1]
        assert score.logprob == pytest.approx(float(exact[row, score.token_id]), abs=TOLERANCE)
        assert [value for _, value in score.top] == pytest.approx(exact[row].topk(NUM_TOP).values, abs=TOLERANCE)
        for token_id, value in score.top:
            assert value == pytest.approx(float(exact[row, token_id]), abs=TOLERANCE)
    assert row == request.num_tokens - 2, "every token but the first"


@pytest.mark.parametrize("budget", [64, 8])
def test_prompt_and_output_beside_strangers(model: tuple[Any, LoadedModel], budget: int) -> None:
    """Whole and in chunks; the second time all of it is cached, and computed for all that."""
    own, loaded = model
    bench = ScoringBench(loaded, max_num_batched_tokens=budget)
    for _ in range(2):
        requests = [bench.ask(prompt) for prompt in tiny_prompts()[:6]]
        stranger = bench.add(tiny_prompts()[0])
        bench.finish()
        assert bench.scores(stranger) == ((), []), "no score where nobody asks"
        for request in requests:
            assert_right(own, bench, request)


def test_each_accepted_guess_has_its_own_row(model: tuple[Any, LoadedModel]) -> None:
    own, loaded = model
    plain = ScoringBench(loaded, max_num_draft_tokens=0)
    known = plain.ask(tiny_prompts()[0], scores_prompt=False)
    plain.finish()
    bench = ScoringBench(loaded, max_num_draft_tokens=3)
    request = bench.ask(tiny_prompts()[0], scores_prompt=False)
    request.prediction = tuple(known.token_ids[known.num_prompt_tokens :])
    bench.finish()
    assert bench.scheduler.drafter.num_accepted_tokens > 0
    assert len(bench.outputs[request.id]) < len(plain.outputs[known.id])
    assert_right(own, bench, request, has_prompt=False)


def test_scores_are_of_the_unmodified_distribution(model: tuple[Any, LoadedModel]) -> None:
    own, loaded = model
    bench = ScoringBench(loaded)
    changed: dict[str, Any] = {"logit_bias": ((3, 100.0),), "repetition_penalty": 1.7, "presence_penalty": 2.0}
    request = bench.ask(tiny_prompts()[0], temperature=1.5, top_k=3, **changed)
    bench.finish()
    assert 3 in request.token_ids[request.num_prompt_tokens :]
    assert_right(own, bench, request)
