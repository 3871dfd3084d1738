"""The rows of a step cut into tiles, and which blocks of the pool each tile reads: what FlexAttention is told.

    rows      [ d0 | s0 s0 s0 | c0 c0 .. c0 | c1 .. ]         the packed batch
    short     [ d0 .  .  . ] [ s0 s0 s0 . ] [ .  .  .  . ]    tiles of 4 rows of one entry: streams and their drafts
    long      [ c0 .. 64 of them ] [ c0 c0 . . ] [ c1 .. ]    tiles of 64 rows of one entry: prompts

A tile's blocks are physical block ids, and FlexAttention knows slots of the pool only. `Tiles.sees` maps a slot back
to its position: `block_positions` says where in a request its block stands (KV depends on its position, so that is the
same for whoever holds it), and the tile's own table says whether it is this request's at all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sessions.engine.spans import Ints, Spans

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""tile, head, row of the tile, slot of the pool -> does the row see the slot? Broadcasts."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """What tiles read. partial, full: [N, W] block ids, of which the first num_partial, num_full [N] count; int32.

    full: every row in use sees all of it, so that no mask need be computed for it.
    """

    num_partial: torch.Tensor
    partial: torch.Tensor
    num_full: torch.Tensor
    full: torch.Tensor


@dataclass(frozen=True, slots=True)
class Tiles:
    """N tiles of R rows, on the device.

    rows: [N, R] int64 rows of the batch, 0 where a tile has fewer. first: [N] int32 position of its first row.
    counts: [N] int32 rows in use; 0 is an empty tile. table: [N, W] int32 blocks of its entry, padding -1.
    """

    rows: torch.Tensor
    first: torch.Tensor
    counts: torch.Tensor
    table: torch.Tensor

    def sees(self, position_of: torch.Tensor, block_size: int, window: int | None) -> Mask:
        """position_of: as of `block_positions`. window: tokens a token sees, itself included; None is all."""
        table, first = self.table, self.first

        def mask(tile: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
            block = slot // block_size
            at = position_of[block]
            position, own = at * block_size + slot % block_size, first[tile] + row
            seen = (table[tile, at] == block) & (position <= own)
            return seen if window is None else seen & (position > own - window)

        return mask

    def blocks(self, block_size: int, window: int | None, *, tell_full: bool) -> Blocks:
        """tell_full: else all blocks are called partial.

        A table's columns:   low ──── full_low ════════ full_end ──── end
        """
        last = self.first + self.counts - 1
        end = last // block_size + 1
        low = torch.zeros_like(end) if window is None else (self.first - window + 1).clamp(0) // block_size
        low = low.minimum(end)
        full_low = full_end = low
        if tell_full:
            if window is not None:
                full_low = ((last - window + block_size) // block_size).clamp(0).maximum(low).minimum(end)
            full_end = ((self.first + 1) // block_size).maximum(full_low).minimum(end)
        column = torch.arange(self.table.shape[1], dtype=torch.int32, device=self.table.device)
        before = (full_low - low)[:, None]
        partial = torch.where(column < before, low[:, None] + column, full_end[:, None] + column - before)
        return Blocks(
            full_low - low + end - full_end,
            self._ids(partial),
            full_end - full_low,
            self._ids(full_low[:, None] + column),
        )

    def _ids(self, columns: torch.Tensor) -> torch.Tensor:
        """Block ids at columns [N, W] of the table; anything that exists where there are none."""
        inside = columns.clamp(0, self.table.shape[1] - 1)
        return self.table.gather(1, inside.long()).clamp(0)


def tiles_of(spans: Spans, chosen: Ints, size: int, width: int, device: torch.device) -> tuple[Tiles, Ints]:
    """Entries `chosen` of a step in tiles of `size` rows; and [N * R], of each of them its row of the batch, or -1.

    width: columns of a tile's table, at least those of the step's. N is a power of 4.
    """
    per_entry = -(-spans.counts[chosen] // size)
    entries = np.repeat(chosen, per_entry)
    done = (np.arange(len(entries)) - np.repeat(per_entry.cumsum() - per_entry, per_entry)) * size
    counts = np.minimum(spans.counts[entries] - done, size)
    num_tiles = power_of_four(len(entries))

    def padded(values: Ints) -> Ints:
        return np.concatenate([values, np.zeros(num_tiles - len(values), np.int64)])

    in_use = np.arange(size) < padded(counts)[:, None]
    rows = np.where(in_use, padded(spans.rows[entries] + done)[:, None] + np.arange(size), -1)

    def tensor(values: Ints) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(device)

    table = torch.full((num_tiles, width), -1, dtype=torch.int32, device=device)
    table[: len(entries), : spans.table.shape[1]] = tensor(spans.table[entries])
    tiles = Tiles(
        torch.from_numpy(rows.clip(0)).to(device),
        tensor(padded(spans.starts[entries] + done)),
        tensor(padded(counts)),
        table,
    )
    return tiles, rows.reshape(-1)


def empty_tiles(num_tiles: int, size: int, width: int, device: torch.device) -> Tiles:
    """Tiles without rows."""
    zeros = torch.zeros(num_tiles, dtype=torch.int32, device=device)
    rows = torch.zeros(num_tiles, size, dtype=torch.int64, device=device)
    return Tiles(rows, zeros, zeros, torch.full((num_tiles, width), -1, dtype=torch.int32, device=device))


def block_positions(spans: Spans, num_blocks: int, device: torch.device) -> torch.Tensor:
    """[num_blocks] int32: the column at which the step's tables have each block; 0 for those they do not have."""
    table = torch.from_numpy(spans.table).to(device)
    columns = torch.arange(table.shape[1], dtype=torch.int32, device=device).expand_as(table)
    positions = torch.zeros(num_blocks + 1, dtype=torch.int32, device=device)
    positions[table] = columns  # padding, -1, writes to the last one, which is no block's
    return positions[:num_blocks]


def power_of_four(count: int) -> int:
    """The least that is not below `count`."""
    power = 1
    while power < count:
        power *= 4
    return power
