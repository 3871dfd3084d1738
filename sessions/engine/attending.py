"""Which attention reads the pool: what a machine can try, in order, and how each kind is opened over a pool.

    CPU    kernels, if their limits hold, else sdpa
    CUDA   flex, if its limits hold and the check of this start passes with it, else sdpa

`measure` tries the candidates. A setting can name one; then it is that one or a refusal with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from sessions.engine.attention import AttentionKind, Receiver
from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.loaded import Arithmetic
from sessions.engine.native.attention import NativeAttention, NativePool
from sessions.engine.native.kernels import Kernels
from sessions.engine.torch_attention import TorchAttention
from sessions.errors import ModelRefused

if TYPE_CHECKING:
    from sessions.engine.flex_attention import FlexPool

Report = Callable[[str], None]
Attention = Callable[[Batch], Receiver]

SMALLEST_BLOCK, LARGEST_BLOCK = 16, 128
"""Tokens of a block that FlexAttention's kernels can take; only powers of two."""
SMALLEST_HEAD = 16
"""Numbers of a head that they can take."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """kind: auto or one of `AttentionKind`. block_size: of the pool to come. report: told of a fallback, in a line."""

    kind: str = "auto"
    block_size: int = 16
    report: Report = lambda _: None


def candidates(
    wanted: Wanted, arithmetic: Arithmetic, layers: tuple[LayerLayout, ...], kernels: Kernels | None
) -> tuple[AttentionKind, ...]:
    """What to try, best first; never empty. Raises ModelRefused for what was asked for by name and cannot be had."""
    obstacles: dict[AttentionKind, str | None] = {
        "kernels": kernels_obstacle(arithmetic, layers, kernels),
        "flex": flex_obstacle(arithmetic, layers, wanted.block_size),
        "sdpa": None,
    }
    for kind, obstacle in obstacles.items():
        if kind == wanted.kind:
            if obstacle is not None:
                raise ModelRefused(f"attention '{kind}' cannot be had: {obstacle}")
            return (kind,)
    best: AttentionKind = "kernels" if arithmetic.device.type == "cpu" else "flex"
    if (obstacle := obstacles[best]) is not None:
        wanted.report(f"attention 'sdpa' instead of '{best}': {obstacle}")
        return ("sdpa",)
    return ("kernels",) if best == "kernels" else ("flex", "sdpa")


def kernels_obstacle(arithmetic: Arithmetic, layers: tuple[LayerLayout, ...], kernels: Kernels | None) -> str | None:
    """Why the CPU kernels cannot attend; None if they can."""
    if arithmetic.device.type != "cpu":
        return "it needs a CPU"
    if kernels is None:
        return "there are no CPU kernels"
    fits = kernels.can_attend(KVCache(layers, 1, 8, arithmetic.kv_dtype, arithmetic.device))
    return None if fits else "the model's heads are beyond its limits"


def flex_obstacle(arithmetic: Arithmetic, layers: tuple[LayerLayout, ...], block_size: int) -> str | None:
    """Why FlexAttention cannot attend in place, as far as one can tell without trying; None if it may."""
    if arithmetic.device.type != "cuda":
        return "it needs a CUDA device"
    if find_spec("triton") is None:
        return "it needs triton, which is not installed"
    if arithmetic.kv_dtype != arithmetic.dtype:
        return f"it needs KV of the model's dtype, {arithmetic.dtype}, and it is {arithmetic.kv_dtype}"
    if not SMALLEST_BLOCK <= block_size <= LARGEST_BLOCK or block_size & (block_size - 1):
        return f"it needs blocks of {SMALLEST_BLOCK}, 32, 64 or {LARGEST_BLOCK} tokens, not of {block_size}"
    if any(min(kv.head_dim, kv.value_head_dim) < SMALLEST_HEAD for kv in layers):
        return f"it needs heads of at least {SMALLEST_HEAD}"
    return None


def open_attention(
    kind: AttentionKind, cache: KVCache, kernels: Kernels | None, max_model_len: int, *, warm: bool = False
) -> Attention:
    """Attention over this pool, whose order must be the kind's. warm: compile all that steps need, now.

    On CPU 'flex' runs uncompiled: for tests.
    """
    if kind == "kernels":
        assert kernels is not None and kernels.can_attend(cache) and not cache.tokens_first
        pool = NativePool(kernels, cache, max_model_len)
        return lambda batch: NativeAttention(pool, batch)
    if kind == "sdpa":
        return lambda batch: TorchAttention(batch, cache)
    # Imports torch's compiler, which takes seconds that no other kind needs.
    from sessions.engine.flex_attention import FlexAttention, FlexPool

    flex_pool = FlexPool(cache, max_model_len, compiled=cache.device.type == "cuda")
    if warm and cache.device.type == "cuda":
        warm_up(flex_pool)
    return lambda batch: FlexAttention(flex_pool, batch)


def warm_up(pool: "FlexPool") -> None:
    """Raises ModelRefused: by now the pool is there, in its order, and nothing else can take its place."""
    try:
        with torch.inference_mode():
            pool.warm()
    except Exception as error:
        raise ModelRefused(f"{flex_failure(error)}; `--attention sdpa` does without it") from error


def flex_failure(error: Exception) -> str:
    """What a compiler or a driver raised, in one line."""
    what = (str(error).strip().splitlines() or [""])[0]
    return f"FlexAttention fails here: {type(error).__name__}: {what}"
