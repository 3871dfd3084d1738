"""Packed weights: an answer is the same tokens however it is computed. The reference is the engine's own cold answer.

Rounding makes it another answer than fp32's here and there; it must not make it two answers.
"""

import gc
import weakref
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from sessions.engine.linear import can_pack
from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from sessions.engine.native.kernels import load_kernels
from tests.oracle import (
    SERVED,
    Bench,
    ColdOracle,
    assert_choices_are_right,
    assert_cold_warm_and_beside_strangers,
    assert_forks_are_right,
    assert_right,
    assert_right_at_every_cached_length,
    assert_right_in_trouble,
    block_size_of,
    cache_dir,
    tiny_families,
    tiny_model,
    tiny_prompts,
)

KINDS = ["llama", "qwen3", "gemma3_text", "gpt2", "opt"]
"""The lean forward, with and without head norms; a sliding window; transposed weights; biases."""

Quantized = Literal["file", "fp16", "int8"]
QUANTIZED: tuple[Quantized, ...] = ("file", "fp16", "int8")


def prepare(model: Any, quantization: Quantized, kv_dtype: torch.dtype) -> LoadedModel:
    kernels, reason = load_kernels(cache_dir())
    if kernels is None or not can_pack():
        pytest.skip(reason or "this build of torch has no packed linears")
    if quantization == "file":
        move_to_grids(model)
    return prepare_model(model, kernels, quantization, kv_dtype)


@torch.no_grad()
def move_to_grids(model: torch.nn.Module) -> None:
    """Every matrix but embeddings becomes one that a Q4_1 file could hold; odd widths leave a shorter last block."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2 or isinstance(module, torch.nn.Embedding):
            continue
        rows = weight if isinstance(module, torch.nn.Linear) else weight.t()
        for block in rows.split(32, dim=1):
            low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
            step, offset = ((high - low) / 15).half().float(), low.half().float()
            block.copy_(((block - offset) / step).round().clamp(0, 15) * step + offset)


@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("kind", KINDS)
def test_one_answer(kind: str, quantization: Quantized, kv_dtype: torch.dtype) -> None:
    loaded = prepare(tiny_model(kind, SERVED[kind]), quantization, kv_dtype)
    if quantization == "file":
        rest = loaded.forms.replace("1 in fp16", "")
        assert "in 4-bit integers" in rest and "fp16" not in rest, "all but the head, which may be tied to embeddings"
    oracle = ColdOracle(loaded)
    kin = tiny_families(block_size_of(loaded))[1::3]
    oracle.learn(tiny_prompts() + [prompt for family in kin for prompt in family.prompts])
    assert_cold_warm_and_beside_strangers(oracle, loaded, tiny_prompts())
    assert_right_at_every_cached_length(oracle, loaded, tiny_prompts())
    assert_right_in_trouble(oracle, loaded, tiny_prompts())
    for family in kin:
        assert_forks_are_right(oracle, loaded, family)
        assert_choices_are_right(oracle, loaded, family.parent)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("quantization", QUANTIZED)
def test_one_answer_of_the_default_model_past_a_partition(quantization: Quantized) -> None:
    """Prompts longer than the 512 keys the kernel sums at a time, so that partial sums are merged."""
    from sessions.model_folder import resolve_model

    folder = resolve_model("default", cache_dir(), lambda _: None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    loaded = prepare(model.eval(), quantization, torch.float16)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 40_000, (length,), generator=generator).tolist() for length in (700, 33)]
    prompts.append([*prompts[0][:530], *prompts[1]])
    oracle = ColdOracle(loaded)
    oracle.learn(prompts)
    for config in ({"num_blocks": 400}, {"max_num_batched_tokens": 48, "num_blocks": 120}):
        bench = Bench(loaded, **config)
        for _ in range(2):
            assert_right(oracle, bench.run(*prompts))


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_packed_weights_let_the_originals_go(quantization: Quantized) -> None:
    model = tiny_model("llama", {"tie_word_embeddings": False})
    head = weakref.ref(model.lm_head.weight)
    loaded = prepare(model, quantization, torch.float32)
    del model
    gc.collect()
    assert loaded.quantization == quantization
    assert head() is None
