"""The oracle: greedy ids over the block pool equal `transformers.generate()` on the same prompt, fp32 on CPU.

Every listed architecture with tiny random weights, and the default model with its real ones: cold, warm at every cached
length, chunked, beside strangers, forked, after eviction, after preemption, after a neighbour's abort. Each through
plain torch and through the kernels (which means the lean forward, for models it knows).
"""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from sessions.engine.native.kernels import Kernels, load_kernels
from sessions.errors import ModelRefused
from tests.oracle import (
    REFUSED,
    SERVED,
    Bench,
    Oracle,
    assert_choices_are_right,
    assert_cold_warm_and_beside_strangers,
    assert_forks_are_right,
    assert_right,
    assert_right_at_every_cached_length,
    assert_right_in_trouble,
    block_size_of,
    cache_dir,
    families,
    tiny_families,
    tiny_model,
    tiny_prompts,
)

FUSED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"}
"""Architectures that the lean forward serves; granite only while its multipliers are 1."""

Tiny = tuple[Oracle, LoadedModel]


@pytest.fixture(scope="module", params=["torch", "kernels"])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    if request.param == "torch":
        return None
    loaded, reason = load_kernels(cache_dir())
    if loaded is None:
        pytest.skip(reason)
    return loaded


@pytest.fixture(scope="module", params=sorted(SERVED))
def tiny(request: pytest.FixtureRequest, kernels: Kernels | None) -> Tiny:
    oracle = Oracle(tiny_model(request.param, SERVED[request.param]))
    forks = [prompt for family in tiny_families(4 if kernels is None else 8) for prompt in family.prompts]
    oracle.learn(tiny_prompts() + forks)
    loaded = oracle.prepare(kernels)
    assert loaded.fused == (kernels is not None and request.param in FUSED)
    assert (loaded.kernels is None) == (kernels is None)
    return oracle, loaded


def test_cold_warm_and_beside_strangers(tiny: Tiny) -> None:
    assert_cold_warm_and_beside_strangers(*tiny, tiny_prompts())


def test_every_cached_length(tiny: Tiny) -> None:
    assert_right_at_every_cached_length(*tiny, tiny_prompts())


def test_chunked_evicted_preempted_and_after_an_abort(tiny: Tiny) -> None:
    assert_right_in_trouble(*tiny, tiny_prompts())


def test_forked_at_every_tail_offset(tiny: Tiny) -> None:
    for family in tiny_families(block_size_of(tiny[1])):
        assert_forks_are_right(*tiny, family)


def test_choices_of_one_prompt(tiny: Tiny) -> None:
    for family in tiny_families(block_size_of(tiny[1])):
        assert_choices_are_right(*tiny, family.parent)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_served_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ModelRefused, match=kind) as refusal:
        prepare_model(tiny_model(kind, REFUSED[kind]))
    assert len(str(refusal.value)) > len(kind) + 10


@pytest.mark.model
@pytest.mark.slow
def test_the_default_model(kernels: Kernels | None) -> None:
    from sessions.model_folder import resolve_model

    folder = resolve_model("default", cache_dir(), lambda _: None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    oracle = Oracle(model.eval())
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 40_000, (length,), generator=generator).tolist() for length in (70, 33)]
    prompts.append([*prompts[0][:50], *prompts[1]])
    kin = families(prompts[0], 4 if kernels is None else 8)[::2]
    oracle.learn(prompts + [prompt for family in kin for prompt in family.prompts])
    loaded = oracle.prepare(kernels)
    assert loaded.fused == (kernels is not None)
    for config in ({}, {"max_num_batched_tokens": 16}, {"num_blocks": 192 // block_size_of(loaded)}):
        bench = Bench(loaded, **config)
        for _ in range(2):
            assert_right(oracle, bench.run(*prompts))
    for family in kin:
        assert_forks_are_right(oracle, loaded, family)
        assert_choices_are_right(oracle, loaded, family.parent)
