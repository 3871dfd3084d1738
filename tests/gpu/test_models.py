"""A model on a device: each attention through load check, scheduler, pool and runner gives the model's own answers.

    .venv/bin/python -m pytest tests/gpu -m gpu -s      prints how long steps take with each attention

On CPU the tests themselves are tested, the timing over small numbers.
"""

import time
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from sessions.engine import attending
from sessions.engine.attending import Wanted, open_attention
from sessions.engine.attention import AttentionKind
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from tests.gpu.test_attention import DEVICES, KINDS
from tests.oracle import (
    ColdOracle,
    assert_cold_warm_and_beside_strangers,
    assert_right_in_trouble,
    block_size_of,
    tiny_model,
    tiny_prompts,
)
from tests.unit.engine.steps import Requests

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "hidden_size": 64}


def load(kind: AttentionKind, device: str, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A llama with windows of 7 in fp32, whose greedy choices rounding does not flip."""
    if device == "cpu":
        monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        monkeypatch.setattr(attending, "flex_obstacle", lambda *_: None)
    model: Any = tiny_model("mistral", {"sliding_window": 7} | SHAPE).to(device)
    return prepare_model(model, wanted=Wanted(kind, block_size=16))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_answer_however_it_is_computed(device: str, kind: AttentionKind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its own cold answers, and those against plain torch's on CPU."""
    loaded = load(kind, device, monkeypatch)
    assert (loaded.attention, loaded.device.type) == (kind, device)
    prompts = tiny_prompts()[:4]
    oracle, reference = ColdOracle(loaded), ColdOracle(load("sdpa", "cpu", monkeypatch))
    oracle.learn(prompts)
    reference.learn(prompts)
    assert oracle.answers == reference.answers
    assert block_size_of(loaded) in (4, 16)
    assert_cold_warm_and_beside_strangers(oracle, loaded, prompts)
    assert_right_in_trouble(oracle, loaded, prompts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_auto_is_flex() -> None:
    reports: list[str] = []
    model: Any = tiny_model("llama", SHAPE).to("cuda")
    loaded = prepare_model(model, wanted=Wanted(report=reports.append))
    assert (loaded.attention, loaded.numerics, reports) == ("flex", "cuda/modules/flex", [])


@pytest.mark.parametrize("device", DEVICES)
def test_how_long_a_step_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints; asserts only that all ran. One layer of a model of 8B parameters."""
    on_gpu = device == "cuda"
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", not on_gpu)
    layout = LayerLayout(32, 8, 128, 128, 128**-0.5) if on_gpu else LayerLayout(4, 2, 16, 16, 0.25)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    cases = [(1, 1024), (1, 8192), (16, 1024), (64, 4096)] if on_gpu else [(2, 40)]
    sizes = (16, 64) if on_gpu else (16,)
    for block_size in sizes:
        for num_requests, context in cases:
            for new in (1, 4, 256 // num_requests if on_gpu else 20):
                num_blocks = num_requests * -(-context // block_size) + 8
                cache = KVCache([layout], num_blocks, block_size, dtype, torch.device(device), tokens_first=True)
                requests = Requests(cache, (context,) * num_requests)
                _, entries = requests.halves((new,) * num_requests)
                milliseconds = {}
                for kind in KINDS:
                    attention = open_attention(kind, cache, None, context)
                    milliseconds[kind] = timed(requests, attention, entries, dtype, 20 if on_gpu else 2)
                case = f"blocks of {block_size}, {num_requests} x {new} new after {context - new}"
                print(f"{device}, {case}: {milliseconds} ms")
                assert all(taken > 0 for taken in milliseconds.values())


def timed(requests: Requests, attention: Any, entries: Any, dtype: torch.dtype, repeats: int) -> float:
    """Milliseconds of a step of one layer, tables and masks included; the median after what compiles."""
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            requests.step(attention, entries, dtype)  # ends with a copy to the host: nothing is left running
            taken.append((time.perf_counter() - started) * 1000)
    return round(sorted(taken[1:])[repeats // 2], 3)
