"""Steps over a pool with random K and V, and what plain attention makes of them: for any attention and device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sessions.engine.attending import Attention
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Q [n, heads, d], K [n, kv_heads, d], V [n, kv_heads, dv]."""


def random_parts(layout: LayerLayout, num_tokens: int, generator: torch.Generator) -> Parts:
    """fp32 on CPU."""
    q, k, v = (
        torch.randn(num_tokens, heads, size, generator=generator)
        for heads, size in (
            (layout.num_heads, layout.head_dim),
            (layout.num_kv_heads, layout.head_dim),
            (layout.num_kv_heads, layout.value_head_dim),
        )
    )
    return q, k, v


def plain(layout: LayerLayout, parts: Parts) -> torch.Tensor:
    """[n, heads, dv]: causal attention inside the window."""
    position = torch.arange(len(parts[0]))
    mask = position[None] <= position[:, None]
    if layout.sliding_window is not None:
        mask &= position[None] > position[:, None] - layout.sliding_window
    q, k, v = (part.transpose(0, 1) for part in parts)
    groups = layout.num_heads // layout.num_kv_heads
    k, v = k.repeat_interleave(groups, dim=0), v.repeat_interleave(groups, dim=0)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=layout.scaling).transpose(0, 1)


@dataclass
class Requests:
    """Requests of some tokens each, in shuffled blocks of a pool that others filled with large numbers before.

    shared: leading blocks that all of them hold together, with the same K and V.
    """

    cache: KVCache
    num_tokens: Sequence[int]
    shared: int = 0
    seed: int = 1
    parts: list[Parts] = field(init=False)
    tables: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        layout, size = self.cache.layers[0], self.cache.block_size
        generator = torch.Generator().manual_seed(self.seed)
        self.parts = [random_parts(layout, count, generator) for count in self.num_tokens]
        for parts in self.parts[1:]:
            for own, first in zip(parts[1:], self.parts[0][1:], strict=True):
                own[: self.shared * size] = first[: self.shared * size]
        needed = [-(-count // size) for count in self.num_tokens]
        ids = torch.randperm(self.cache.num_blocks, generator=generator).to(torch.int32).numpy()
        common, rest = ids[: self.shared], ids[self.shared :]
        ends = np.cumsum([count - self.shared for count in needed])
        assert ends[-1] <= len(rest)
        self.tables = [np.concatenate([common, part]) for part in np.split(rest, ends)[:-1]]
        for part in (*self.cache.keys, *self.cache.values):
            part.copy_(torch.randint(-100, 100, part.shape, generator=generator))

    def batch(self, entries: Sequence[tuple[int, int, int]]) -> Batch:
        """entries: (request, start, end); those of one token come first."""
        rows = np.cumsum([0, *(end - start for _, start, end in entries)])
        records = [
            (self.tables[request].ctypes.data, row, start, end - start, 0)
            for (request, start, end), row in zip(entries, rows, strict=False)
        ]
        ids = torch.zeros(1, int(rows[-1]), dtype=torch.int64)
        tables = tuple(self.tables[request] for request, _, _ in entries)
        return Batch(ids, ids, ids[0], np.array(records, SEQUENCE), tables)

    def step(
        self, attention: Attention, entries: Sequence[tuple[int, int, int]], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """[T, heads, dv] fp32 on CPU."""
        q, k, v = (
            torch.cat([self.parts[request][n][start:end] for request, start, end in entries]).to(
                self.cache.device, dtype
            )
            for n in range(3)
        )
        layout = self.cache.layers[0]
        out = attention(self.batch(entries)).attend(0, q, k, v, layout.scaling, layout.sliding_window)
        return out.float().cpu()

    def wanted(self, entries: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """What plain attention gives these rows."""
        layout = self.cache.layers[0]
        outs = {request: plain(layout, self.parts[request]) for request, _, _ in entries}
        return torch.cat([outs[request][start:end] for request, start, end in entries])

    def halves(self, steps: Sequence[int]) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """All requests but their last `steps[i]` tokens, then those: a step that fills, and one to look at."""
        before = [
            (index, 0, count - new) for index, (count, new) in enumerate(zip(self.num_tokens, steps, strict=True))
        ]
        after = [(index, start, self.num_tokens[index]) for index, _, start in before]

        def ordered(entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
            return sorted(
                (entry for entry in entries if entry[2] > entry[1]), key=lambda entry: entry[2] - entry[1] > 1
            )

        return ordered(before), ordered(after)
