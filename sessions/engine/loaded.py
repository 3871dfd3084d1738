"""What loading makes and what it is asked for: `LoadedModel`, `LoadOptions`, what `auto` means. No model's code."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sessions.engine.attention import AttentionKind
from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.linear import QUANTIZATIONS, Quantization, can_pack
from sessions.engine.native.kernels import Kernels
from sessions.errors import ModelRefused


class Forward(Protocol):
    """Writes the batch's K and V into the pool behind `attention`; returns logits [S, vocabulary]."""

    def __call__(self, batch: Batch, attention: Any) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a model is computed. dtype: of activations, and of weights unless they are packed. kv_dtype: of the pool."""

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization
    kv_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that passed the checks. `layers` in layer order; `max_model_len` in tokens.

    attention: the kind that passed. kernels: the CPU kernels, where it is they. fused: is `forward` the lean one?
    build: of the CPU kernels, if there are any: linears may use them where attention does not. forms: of linears.
    """

    forward: Forward
    layers: tuple[LayerLayout, ...]
    arithmetic: Arithmetic
    max_model_len: int
    attention: AttentionKind = "sdpa"
    kernels: Kernels | None = None
    fused: bool = False
    build: str = ""
    forms: str = ""

    @property
    def device(self) -> torch.device:
        return self.arithmetic.device

    @property
    def dtype(self) -> torch.dtype:
        return self.arithmetic.dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        return self.arithmetic.kv_dtype

    @property
    def quantization(self) -> Quantization:
        return self.arithmetic.quantization

    @property
    def numerics(self) -> str:
        """Names the arithmetic, for the root of the hash chain: KV of another one is not the same KV."""
        parts = [self.device.type, "fused" if self.fused else "modules", self.attention, self.build]
        return "/".join(filter(None, parts))

    def open_pool(self, num_blocks: int, block_size: int) -> KVCache:
        """A pool for its KV, ordered as its attention reads it."""
        return KVCache(
            self.layers, num_blocks, block_size, self.kv_dtype, self.device, tokens_first=self.attention != "kernels"
        )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """device: auto, cpu, cuda. dtype, kv_dtype: auto or torch's name. quantization: auto or `linear.QUANTIZATIONS`.

    attention: auto or an `AttentionKind`. block_size: of the pool to come, which not every kind can read.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    kv_dtype: str = "auto"
    attention: str = "auto"
    block_size: int = 16


def pick_arithmetic(options: LoadOptions, stored: str | None, kernels: Kernels | None) -> Arithmetic:
    """stored: the checkpoint's dtype as its config names it. Raises ModelRefused for what this machine cannot do."""
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device, stored)
    quantization = pick_quantization(options.quantization, device, dtype, kernels)
    return Arithmetic(device, dtype, quantization, pick_kv_dtype(options.kv_dtype, dtype, quantization))


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelRefused for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("device 'cuda' was asked for, but torch sees no CUDA device")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device, stored: str | None) -> torch.dtype:
    """`auto` is float32 on CPU, where it is exact and fast, and the checkpoint's own dtype elsewhere."""
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" or stored is None else stored
    picked = getattr(torch, dtype)
    assert isinstance(picked, torch.dtype)
    return picked


def pick_quantization(
    quantization: str, device: torch.device, dtype: torch.dtype, kernels: Kernels | None
) -> Quantization:
    """`auto` is file with our CPU kernels, fp16 with torch's, none without. Raises ModelRefused where they are not."""
    packs = device.type == "cpu" and dtype == torch.float32
    if quantization == "auto":
        return "file" if packs and kernels and can_pack() else "fp16" if packs and can_pack() else "none"
    if quantization == "fp16" and not (packs and can_pack()):
        raise ModelRefused("quantization 'fp16' needs an x86 CPU and dtype float32")
    if quantization in ("file", "int8") and not (packs and kernels):
        raise ModelRefused(f"quantization '{quantization}' needs a CPU, dtype float32, and the CPU kernels")
    picked: Quantization = QUANTIZATIONS[QUANTIZATIONS.index(quantization)]
    return picked


def pick_kv_dtype(kv_dtype: str, dtype: torch.dtype, quantization: Quantization) -> torch.dtype:
    """`auto` is float16 beside packed weights, whose rounding is as large, and the model's own dtype otherwise."""
    if kv_dtype == "auto":
        return dtype if quantization == "none" else torch.float16
    picked = getattr(torch, kv_dtype)
    assert isinstance(picked, torch.dtype)
    return picked
