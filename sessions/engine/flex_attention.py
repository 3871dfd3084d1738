"""Attention over the block pool in place: torch's FlexAttention over the pool itself, for CUDA (ADR 12).

Tiles (`tiles`) are FlexAttention's batch, and share one element of keys and values: the pool. Numbers of tiles are
padded to powers of 4 and every other shape is static, so the kernels are few and compiled before the first request.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.spans import spans_of
from sessions.engine.tiles import Tiles, block_positions, empty_tiles, tiles_of

SHORT: Final = 4
"""Rows of a short tile: a token and its drafts. With four query heads to a KV head they fill a kernel's 16 rows."""
LONG: Final = 64
"""Rows of a long tile."""
SPLITS: Final = 8
"""Parts that the keys of a short tile are split into.

Fixed, where torch takes it from the number of tiles. Still a row's sum is not independent of its neighbours: where its
tile begins, and what drafts are in it, decide which keys are summed in which order, and in which kernel (ADR 12).
"""
Q_BLOCK: Final = 128
"""Rows that the mask of a short tile is given for: a multiple of what its kernel makes of rows and query heads."""
WARM: Final = (1, 4, 16, 64)
"""Numbers of tiles whose kernels are compiled at start. More are compiled when they first come, and that step waits."""


class FlexPool:
    """What outlives a step.

    compiled: without, torch materialises the scores over the whole pool, in any dtype and on any device: for tests.
    """

    def __init__(self, cache: KVCache, max_model_len: int, *, compiled: bool) -> None:
        self.cache = cache
        self.width = min(-(-max_model_len // cache.block_size), cache.num_blocks)
        self._flex = _compiled() if compiled else _eager()

    def warm(self) -> None:
        """Compile what steps will need. Slow, minutes on a machine that never did; raises what torch raises."""
        device = self.cache.device
        positions = torch.zeros(self.cache.num_blocks, dtype=torch.int32, device=device)
        for layer, kv in {kv: layer for layer, kv in enumerate(self.cache.layers)}.items():
            query = torch.zeros(1, layer.num_heads, layer.head_dim, dtype=self.cache.dtype, device=device)
            for size in (SHORT, LONG):
                for count in WARM:
                    tiles = empty_tiles(count, size, self.width, device)
                    mask = self.mask(tiles, positions, layer.sliding_window)
                    self.attend(kv, tiles, mask, query, layer.scaling)

    def mask(self, tiles: Tiles, positions: torch.Tensor, window: int | None) -> BlockMask:
        """positions: as of `block_positions`."""
        size, num_rows = self.cache.block_size, tiles.rows.shape[1]
        # The kernel of short tiles splits what it takes for the list's length. With full blocks that is the pool's.
        has_full = num_rows == LONG
        blocks = tiles.blocks(size, window, tell_full=has_full)
        return BlockMask.from_kv_blocks(
            blocks.num_partial[:, None, None],
            blocks.partial[:, None, None],
            blocks.num_full[:, None, None] if has_full else None,
            blocks.full[:, None, None] if has_full else None,
            BLOCK_SIZE=(LONG if num_rows == LONG else Q_BLOCK, size),
            mask_mod=tiles.sees(positions, size, window),
            seq_lengths=(num_rows, self.cache.num_blocks * size),
            compute_q_blocks=False,
        )

    def attend(self, layer: int, tiles: Tiles, mask: BlockMask, query: torch.Tensor, scaling: float) -> torch.Tensor:
        """query [T, Hq, d] -> [N * R, Hq, dv], of the tiles' rows."""
        key, value = self.cache.in_place(layer)
        num_heads, num_kv_heads, short = query.shape[1], key.shape[1], tiles.rows.shape[1] == SHORT
        groups = num_heads // num_kv_heads
        # The kernel of short tiles takes the query heads of a KV head together, and powers of two of them.
        padding = (1 << (groups - 1).bit_length()) - groups if short else 0
        num_tiles, num_rows = tiles.rows.shape
        q = query[tiles.rows].reshape(num_tiles, num_rows, num_kv_heads, groups, -1)
        q = pad(q, (0, 0, 0, padding)).flatten(2, 3).transpose(1, 2)
        out: torch.Tensor = self._flex(
            q,
            key,
            value,
            block_mask=mask,
            scale=scaling,
            enable_gqa=groups + padding > 1,
            kernel_options=self._options(short=short),
        )
        out = out.transpose(1, 2).reshape(num_tiles * num_rows, num_kv_heads, groups + padding, -1)
        return out[:, :, :groups].flatten(1, 2)

    def _options(self, *, short: bool) -> dict[str, Any]:
        keys = min(self.cache.block_size, LONG)
        if short:
            return {"BACKEND": "TRITON_DECODE", "SPLIT_KV": SPLITS, "BLOCK_N": keys}
        return {"BACKEND": "TRITON", "BLOCK_M": LONG, "BLOCK_N": keys, "num_warps": 4}


class FlexAttention:
    """One step's attention; see `attention.Receiver`. Masks are built once per window and shared by all layers."""

    def __init__(self, pool: FlexPool, batch: Batch) -> None:
        self._pool = pool
        cache, device = pool.cache, pool.cache.device
        spans = spans_of(batch, cache.block_size)
        self._slots = torch.from_numpy(spans.slots).to(device)
        self._positions = block_positions(spans, cache.num_blocks, device)
        self._masks: dict[tuple[int, int | None], BlockMask] = {}
        self._tiles: list[Tiles] = []
        places = np.empty(len(spans.slots), np.int64)
        start = 0
        is_short = spans.counts <= SHORT
        for size, chosen in ((SHORT, is_short.nonzero()[0]), (LONG, (~is_short).nonzero()[0])):
            if len(chosen):
                tiles, rows = tiles_of(spans, chosen, size, pool.width, device)
                self._tiles.append(tiles)
                in_use = (rows >= 0).nonzero()[0]
                places[rows[in_use]] = start + in_use
                start += len(rows)
        self._places = torch.from_numpy(places).to(device)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """query [T, Hq, d], key [T, Hkv, d], value [T, Hkv, dv] -> [T, Hq, dv]. Writes K and V to the pool first.

        V is written as finite numbers: what a block's former owner left behind the new tokens is read and weighted
        by zero. K need not be: its scores are masked, and those who do see it shall see that it is broken.
        """
        self._pool.cache.write(layer, self._slots, key, value.nan_to_num())
        outs = []
        for index, tiles in enumerate(self._tiles):
            name = (index, sliding_window)
            if name not in self._masks:
                self._masks[name] = self._pool.mask(tiles, self._positions, sliding_window)
            outs.append(self._pool.attend(layer, tiles, self._masks[name], query, scaling))
        return torch.cat(outs)[self._places]


def _compiled() -> Callable[..., Any]:
    # A kernel for each layer layout, kind of tile and number of tiles; past the limit torch would raise.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return compiled


def _eager() -> Callable[..., Any]:
    plain: Any = flex_attention  # declared with a decorator that hides its signature
    return plain  # type: ignore[no-any-return]
