"""The K and V tensors of the pool: their layout, their size, and copies between blocks. Holds no bookkeeping.

    per layer   K [num_slots, kv_heads, head_dim]     V [num_slots, kv_heads, value_head_dim]
    slot        block_id * block_size + offset        one token's place; its K is stored after RoPE

A slot's row is contiguous over heads, so that gathering a prefix reads whole rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from sessions.pool_size import PoolSize


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """Shape of one layer's KV, as the model itself asked for it (`runner.probe_layout`)."""

    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    sliding_window: int | None = None


class KVCache:
    """Preallocated K and V for `num_blocks` blocks of every layer. Mutated by the runner only."""

    def __init__(
        self, layers: Sequence[LayerLayout], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers = tuple(layers)
        self.block_size = block_size
        num_slots = num_blocks * block_size
        self.keys = [_zeros((num_slots, kv.num_kv_heads, kv.head_dim), dtype, device) for kv in layers]
        self.values = [_zeros((num_slots, kv.num_kv_heads, kv.value_head_dim), dtype, device) for kv in layers]

    def copy_blocks(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy whole blocks, all layers; every source is read before any destination is written."""
        if not sources:
            return
        device = self.keys[0].device
        source_slots = block_slots(torch.tensor(sources, device=device), self.block_size)
        destination_slots = block_slots(torch.tensor(destinations, device=device), self.block_size)
        for cache in (*self.keys, *self.values):
            cache[destination_slots] = cache[source_slots]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, because a padded slot that is read and masked must be finite.

    On CPU from calloc: torch.zeros writes every page, which costs seconds of start-up for gigabytes nobody uses yet.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def block_slots(block_ids: torch.Tensor, block_size: int) -> torch.Tensor:
    """All slots of these blocks, in order. block_ids: [n] int -> [n * block_size] int."""
    offsets = torch.arange(block_size, device=block_ids.device)
    return (block_ids[:, None] * block_size + offsets).flatten()


def bytes_per_token(layers: Sequence[LayerLayout], dtype: torch.dtype) -> int:
    """K and V of one token over all layers, in bytes."""
    return sum(layer.num_kv_heads * (layer.head_dim + layer.value_head_dim) for layer in layers) * dtype.itemsize


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
    return int(psutil.virtual_memory().available)
