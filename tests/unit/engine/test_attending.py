"""Which attention is picked: what a machine may try, what was asked for by name, and what happens when a try fails."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from sessions.engine import attending, measure
from sessions.engine.attending import Wanted, candidates, open_attention
from sessions.engine.flex_attention import FlexPool
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.loaded import Arithmetic
from sessions.engine.measure import prepare_model
from sessions.engine.native.attention import NativeAttention
from sessions.engine.native.kernels import Kernels
from sessions.engine.torch_attention import TorchAttention
from sessions.errors import ModelRefused
from tests.oracle import SERVED, tiny_model
from tests.unit.engine.steps import Requests

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS = (LayerLayout(8, 2, 64, 64, 0.125), LayerLayout(8, 2, 64, 64, 0.125, 9))


def on(device: torch.device, dtype: torch.dtype = torch.float32, kv_dtype: torch.dtype | None = None) -> Arithmetic:
    return Arithmetic(device, dtype, "none", kv_dtype or dtype)


@dataclass
class Asked:
    """A `Wanted` and what it was told."""

    kind: str = "auto"
    block_size: int = 16
    reports: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.kind, self.block_size, self.reports.append)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages that are installed, as far as picking is concerned."""
    installed = ["triton"]
    monkeypatch.setattr(attending, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return installed


def test_on_cpu_it_is_the_kernels_or_plain_torch(kernels: Kernels) -> None:
    asked = Asked()
    assert candidates(asked.wanted, on(CPU), LAYERS, kernels) == ("kernels",)
    assert asked.reports == []
    assert candidates(asked.wanted, on(CPU), LAYERS, None) == ("sdpa",)
    assert candidates(asked.wanted, on(CPU), (LayerLayout(2, 1, 64, 65, 1),), kernels) == ("sdpa",)
    assert asked.reports == [
        "attention 'sdpa' instead of 'kernels': there are no CPU kernels",
        "attention 'sdpa' instead of 'kernels': the model's heads are beyond its limits",
    ]


def test_on_cuda_flex_is_tried_before_plain_torch(kernels: Kernels) -> None:
    asked = Asked()
    assert candidates(asked.wanted, on(CUDA, torch.bfloat16), LAYERS, kernels) == ("flex", "sdpa")
    assert candidates(Asked(block_size=64).wanted, on(CUDA), LAYERS, None) == ("flex", "sdpa")
    assert asked.reports == []


NO_FLEX: dict[str, tuple[Arithmetic, tuple[LayerLayout, ...], int]] = {
    "KV of the model's dtype": (on(CUDA, torch.bfloat16, torch.int8), LAYERS, 16),
    "blocks of 16, 32, 64 or 128 tokens, not of 8": (on(CUDA), LAYERS, 8),
    "not of 48": (on(CUDA), LAYERS, 48),
    "not of 256": (on(CUDA), LAYERS, 256),
    "heads of at least 16": (on(CUDA), (*LAYERS, LayerLayout(2, 2, 16, 8, 1)), 16),
    "a CUDA device": (on(CPU), LAYERS, 16),
}


@pytest.mark.parametrize("reason", NO_FLEX)
def test_where_flex_cannot_be_the_reason_is_told(reason: str) -> None:
    arithmetic, layers, block_size = NO_FLEX[reason]
    with pytest.raises(ModelRefused, match=rf"attention 'flex' cannot be had: .*{reason}"):
        candidates(Asked("flex", block_size).wanted, arithmetic, layers, None)
    if arithmetic.device == CUDA:
        asked = Asked(block_size=block_size)
        assert candidates(asked.wanted, arithmetic, layers, None) == ("sdpa",)
        [report] = asked.reports
        assert report.startswith("attention 'sdpa' instead of 'flex': ") and reason in report


def test_without_triton_there_is_no_flex(triton: list[str]) -> None:
    triton.clear()
    with pytest.raises(ModelRefused, match="needs triton"):
        candidates(Asked("flex").wanted, on(CUDA), LAYERS, None)


def test_what_was_asked_for_by_name_is_all_that_is_tried(kernels: Kernels) -> None:
    assert candidates(Asked("sdpa").wanted, on(CPU), LAYERS, kernels) == ("sdpa",)
    assert candidates(Asked("sdpa").wanted, on(CUDA), LAYERS, None) == ("sdpa",)
    assert candidates(Asked("flex").wanted, on(CUDA), LAYERS, None) == ("flex",)
    assert candidates(Asked("kernels").wanted, on(CPU), LAYERS, kernels) == ("kernels",)
    with pytest.raises(ModelRefused, match="attention 'kernels' cannot be had: it needs a CPU"):
        candidates(Asked("kernels").wanted, on(CUDA), LAYERS, kernels)
    with pytest.raises(ModelRefused, match="attention 'kernels' cannot be had: there are no CPU kernels"):
        candidates(Asked("kernels").wanted, on(CPU), LAYERS, None)


def test_a_model_and_its_pool_name_what_attends(kernels: Kernels) -> None:
    by_kernels = prepare_model(tiny_model("llama", {}), kernels)
    by_torch = prepare_model(tiny_model("llama", {}), kernels, wanted=Wanted("sdpa"))
    assert by_kernels.numerics == f"cpu/fused/kernels/{kernels.build}"
    assert by_torch.numerics == f"cpu/modules/sdpa/{kernels.build}"
    pools = [loaded.open_pool(4, 8) for loaded in (by_kernels, by_torch)]
    assert [pool.tokens_first for pool in pools] == [False, True]
    assert pools[0].layout != pools[1].layout
    native, plain = (
        open_attention(loaded.attention, pool, loaded.kernels, 32)
        for loaded, pool in zip((by_kernels, by_torch), pools, strict=True)
    )
    batch = Requests(by_torch.open_pool(4, 8), (9,)).batch([(0, 0, 9)])
    assert isinstance(native(batch), NativeAttention) and isinstance(plain(batch), TorchAttention)


def try_flex_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA; what is picked is computed by flex, uncompiled."""
    monkeypatch.setattr(measure, "candidates", lambda *_: ("flex", "sdpa"))


def test_flex_is_picked_if_it_gives_the_models_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    try_flex_first(monkeypatch)
    asked = Asked()
    loaded = prepare_model(tiny_model("mistral", SERVED["mistral"]), wanted=asked.wanted)
    assert (loaded.attention, loaded.numerics, asked.reports) == ("flex", "cpu/modules/flex", [])
    assert loaded.open_pool(4, 16).tokens_first


def wrong_mask(make: Callable[..., Any]) -> Callable[..., Any]:
    """Rows see one token less far back than they should, from the window of 7."""
    return lambda pool, tiles, positions, window: make(pool, tiles, positions, window and window - 1)


def test_a_flex_that_computes_something_else_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    try_flex_first(monkeypatch)
    monkeypatch.setattr(FlexPool, "mask", wrong_mask(FlexPool.mask))
    asked = Asked()
    loaded = prepare_model(tiny_model("mistral", SERVED["mistral"]), wanted=asked.wanted)
    assert loaded.attention == "sdpa"
    [report] = asked.reports
    assert report.startswith("attention 'sdpa' instead of 'flex': over the block pool its logits differ")


def test_what_fails_over_the_whole_pool_ends_the_start_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("out of resources")

    monkeypatch.setattr(FlexPool, "warm", fail)
    cache = KVCache(LAYERS, 2, 16, torch.float32, CPU, tokens_first=True)
    with pytest.raises(ModelRefused, match="RuntimeError: out of resources; `--attention sdpa` does without it"):
        attending.warm_up(FlexPool(cache, 32, compiled=False))


def test_a_flex_that_does_not_compile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    try_flex_first(monkeypatch)
    monkeypatch.setattr(FlexPool, "attend", fail)
    asked = Asked()
    assert prepare_model(tiny_model("llama", {}), wanted=asked.wanted).attention == "sdpa"
    assert asked.reports == [
        "attention 'sdpa' instead of 'flex': FlexAttention fails here: RuntimeError: no kernel image is available"
    ]
    monkeypatch.setattr(measure, "candidates", lambda *_: ("flex",))
    with pytest.raises(ModelRefused, match="llama: FlexAttention fails here"):
        prepare_model(tiny_model("llama", {}))
