"""The K and V tensors of the pool: their layout, their size, and blocks in and out. Holds no bookkeeping.

    slot   block_id * block_size + offset: one token's place; its K is stored after RoPE

    a layer's block    heads first (the CPU kernels)                tokens first (all else)
    K                  [kv_heads, head_dim, block_size]             [block_size, kv_heads, head_dim]
    V                  [kv_heads, block_size, value_head_dim]       [block_size, kv_heads, value_head_dim]
    scales (int8)      [kv_heads, block_size] fp32, of K and of V   [block_size, kv_heads] fp32, of K and of V

Heads first, K stands transposed inside its block, so that neighbouring keys are one vector load: scores and weighted
values are then both sums of outer products, with nothing to add up across lanes (`native/attention.h`). Tokens first,
the pool is one tensor of slots: a block is one run of memory to gather, and FlexAttention takes the pool as it is.

In int8 each token has a scale per KV head for K and one for V, of its own numbers alone: what a token leaves in the
pool never depends on its neighbours, so it is the same however the tokens were cut into steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import psutil
import torch

from sessions.engine.memory import CACHE_LINE, LARGE_PAGE, rounded_up
from sessions.engine.prefault import Prefault
from sessions.pool_size import PoolSize

STEPS: Final = 127
"""Integers on each side of zero that int8 KV is rounded to."""
SMALLEST: Final = 1e-30
"""K or V of a head whose numbers are all below is stored as zeros: the inverse of its scale would overflow."""


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """What one layer's attention wants, as the model itself asked for it (`attention.LayoutProbe`).

    sliding_window: tokens a token sees, itself included; None is all. scaling: of the scores, before softmax.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    scaling: float
    sliding_window: int | None = None


class KVCache:
    """Preallocated K and V for `num_blocks` blocks of every layer. Mutated by the runner only.

    layout: what a block's bytes mean, for whoever keeps them elsewhere. block_bytes: K and V of all layers.
    tokens_first: the order inside a block; whoever attends decides it (`attending`).
    """

    def __init__(
        self,
        layers: Sequence[LayerLayout],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        tokens_first: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        self.tokens_first = tokens_first
        self.keys, self.values, self.key_scales, self.value_scales = self._allocate()
        self._parts = (*self.keys, *self.values, *self.key_scales, *self.value_scales)
        self.prefault = Prefault(self._parts)
        self._bytes = [part.view(num_blocks, -1).view(torch.uint8) for part in self._parts]
        self.block_bytes = sum(part.shape[1] for part in self._bytes)
        shapes = ["x".join(map(str, part.shape[1:])) for part in self._parts]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.layout = f"{'tokens-first ' if tokens_first else ''}{dtype} {' '.join(shapes)}"
        self._keys, self._values, self._key_scales, self._value_scales = self._by_token()

    def _allocate(self) -> tuple[list[torch.Tensor], ...]:
        """K, V, scales of K, scales of V: one tensor per layer each, no scales but in int8."""
        size = self.block_size
        if self.tokens_first:
            keys = [(size, kv.num_kv_heads, kv.head_dim) for kv in self.layers]
            values = [(size, kv.num_kv_heads, kv.value_head_dim) for kv in self.layers]
            scales = [(size, kv.num_kv_heads) for kv in self.layers]
        else:
            keys = [(kv.num_kv_heads, kv.head_dim, size) for kv in self.layers]
            values = [(kv.num_kv_heads, size, kv.value_head_dim) for kv in self.layers]
            scales = [(kv.num_kv_heads, size) for kv in self.layers]
        if self.dtype != torch.int8:
            scales = []
        wanted: list[tuple[tuple[int, ...], torch.dtype]] = [((self.num_blocks, *s), self.dtype) for s in keys + values]
        wanted += [((self.num_blocks, *s), torch.float32) for s in scales + scales]
        parts = iter(_zeros(wanted, self.device))
        return tuple(list(islice(parts, len(shapes))) for shapes in (keys, values, scales, scales))

    def _by_token(self) -> tuple[list[torch.Tensor], ...]:
        """The same memory as [num_blocks, block_size, kv_heads, ..], whatever the order."""
        if self.tokens_first:
            return self.keys, self.values, self.key_scales, self.value_scales
        keys = [part.permute(0, 3, 1, 2) for part in self.keys]
        rest = [[part.transpose(1, 2) for part in parts] for parts in (self.values, self.key_scales, self.value_scales)]
        return keys, *rest

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """slots [T] int64, key [T, kv_heads, head_dim], value [T, kv_heads, value_head_dim]; rounded to its dtype."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        if self.dtype == torch.int8:
            key, self._key_scales[layer][blocks, offsets] = round_to_int8(key)
            value, self._value_scales[layer][blocks, offsets] = round_to_int8(value)
        self._keys[layer][blocks, offsets] = key.to(self.dtype)
        self._values[layer][blocks, offsets] = value.to(self.dtype)

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of K [n, kv_heads, head_dim] and V [n, kv_heads, value_head_dim] at slots [n]; fp32 where int8."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        key, value = self._keys[layer][blocks, offsets], self._values[layer][blocks, offsets]
        if self.dtype == torch.int8:
            key = key * self._key_scales[layer][blocks, offsets][..., None]
            value = value * self._value_scales[layer][blocks, offsets][..., None]
        return key, value

    def in_place(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pool itself, tokens first: K [1, kv_heads, slots, head_dim], V [1, kv_heads, slots, value_head_dim]."""
        assert self.tokens_first
        key, value = (part.flatten(0, 1).transpose(0, 1)[None] for part in (self.keys[layer], self.values[layer]))
        return key, value

    def copy_blocks(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy whole blocks, all layers; every source is read before any destination is written."""
        if not sources:
            return
        source = torch.tensor(sources, device=self.device)
        destination = torch.tensor(destinations, device=self.device)
        for part in self._parts:
            part[destination] = part[source]

    def host_rows(self, num_rows: int, row_bytes: int) -> npt.NDArray[np.uint8]:
        """Zeros [num_rows, row_bytes] in memory of the host; pinned for a GPU, which then copies without its threads.

        Any thread. Raises MemoryError.
        """
        if self.device.type != "cuda":
            return np.zeros((num_rows, row_bytes), np.uint8)
        try:
            return torch.zeros((num_rows, row_bytes), dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            raise MemoryError(f"{num_rows * row_bytes} bytes cannot be pinned") from error

    def read_blocks(self, block_ids: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        """Copy whole blocks to the host, into `out` [n, block_bytes]. Any thread; may be torn if they are written.

        numpy does it on CPU: an operator of torch would start a second team of threads beside the engine's. On a GPU
        it is a stream of its own, after what the engine has queued so far and beside what it queues from now on.
        """
        ids = np.asarray(block_ids)
        if self._copies is not None:
            return self._read_from_gpu(self._copies, ids, out)
        start = 0
        for part in self._bytes:
            end = start + part.shape[1]
            out[:, start:end] = part.numpy()[ids]
            start = end
        return None

    def _read_from_gpu(self, copies: torch.cuda.Stream, ids: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        staged = torch.from_numpy(out if out.flags.c_contiguous else self.host_rows(*out.shape))
        with torch.cuda.stream(copies):
            copies.wait_stream(torch.cuda.default_stream(self.device))
            index = torch.from_numpy(ids).to(self.device)
            staged.copy_(torch.cat([part[index] for part in self._bytes], dim=1), non_blocking=True)
            copies.synchronize()
        if not out.flags.c_contiguous:
            out[:] = staged.numpy()

    def write_blocks(self, block_ids: Sequence[int], payload: npt.NDArray[np.uint8]) -> None:
        """The inverse: `payload` [n, block_bytes] becomes the KV of these blocks."""
        ids = np.asarray(block_ids)
        rows = torch.from_numpy(np.ascontiguousarray(payload)).to(self.device) if self._copies is not None else None
        start = 0
        for part in self._bytes:
            end = start + part.shape[1]
            if rows is None:
                part.numpy()[ids] = payload[:, start:end]
            else:
                part[torch.from_numpy(ids).to(self.device)] = rows[:, start:end]
            start = end


def round_to_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., n] -> int8 [..., n] and scales [...] fp32, whose product is x but for rounding. The kernels' very bits.

    What is not finite makes its scale NaN or infinite: it shows wherever it is read, as in the other dtypes.
    """
    x = x.float()
    largest = x.abs().amax(dim=-1)
    scales = torch.where(largest <= SMALLEST, 0, largest * (1 / STEPS))
    usable = (largest > SMALLEST) & largest.isfinite()
    rounded = (x * (STEPS * largest.reciprocal())[..., None]).round()
    return torch.where(usable[..., None], rounded, 0).to(torch.int8), scales


def _zeros(parts: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> list[torch.Tensor]:
    """Zeros of these shapes, because a padded slot that is read and masked must be finite.

    On CPU one memory from calloc: torch.zeros writes every page, which costs seconds of start-up for gigabytes nobody
    uses yet. Large parts begin on a large page: their first blocks, which are the first to be used, then lie on one.
    """
    if device.type != "cpu":
        return [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in parts]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in parts]
    starts, end = [], 0
    for size in sizes:
        starts.append(rounded_up(end, LARGE_PAGE if size >= LARGE_PAGE else CACHE_LINE))
        end = starts[-1] + size
    memory = np.zeros(end + LARGE_PAGE, np.uint8)
    memory = memory[-memory.ctypes.data % LARGE_PAGE :]
    return [
        torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)
        for (shape, dtype), start, size in zip(parts, starts, sizes, strict=True)
    ]


def bytes_per_token(layers: Sequence[LayerLayout], dtype: torch.dtype) -> int:
    """K and V of one token over all layers, scales included, in bytes."""
    scale_bytes = 2 * torch.float32.itemsize if dtype == torch.int8 else 0
    return sum(
        layer.num_kv_heads * ((layer.head_dim + layer.value_head_dim) * dtype.itemsize + scale_bytes)
        for layer in layers
    )


def num_blocks_for(
    size: PoolSize, layers: Sequence[LayerLayout], block_size: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Blocks that the pool size setting buys on this device; at least 2.

    A fraction is of the memory that is free now, after the weights are loaded.
    """
    if size.kind == "tokens":
        num_tokens = int(size.amount)
    else:
        num_bytes = size.amount if size.kind == "bytes" else size.amount * free_bytes(device)
        num_tokens = int(num_bytes // bytes_per_token(layers, dtype))
    return max(2, num_tokens // block_size)


def free_bytes(device: torch.device) -> int:
    """Memory that the pool may take a fraction of."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def free_host_bytes() -> int:
    return int(psutil.virtual_memory().available)
