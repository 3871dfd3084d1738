"""Where the rows of a batch stand in the pool: tables and slots, from its block tables. Work per entry, none per block.

sequences    row  start  num_tokens        table (block_size 4, padded)      slots of the new tokens
entry 0       0    5        1               [ 7  2 ]                          2*4+1
entry 1       1    2        4               [ 3  9 ]                          3*4+2  3*4+3  9*4+0  9*4+1
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sessions.engine.batch import Batch

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Spans:
    """E entries, T rows. rows, starts, counts: [E], as in `batch.SEQUENCE`.

    table: [E, W], the blocks of all an entry sees, its new tokens included; padding is -1.
    slots: [T] of the new tokens.
    """

    rows: Ints
    starts: Ints
    counts: Ints
    table: Ints
    slots: Ints

    @property
    def ends(self) -> Ints:
        """[E] tokens of each entry, the new ones included."""
        return self.starts + self.counts


def spans_of(batch: Batch, block_size: int) -> Spans:
    """Over the batch's block tables as they are now."""
    rows, starts, counts = (batch.sequences[name].astype(np.int64) for name in ("row", "start", "num_tokens"))
    num_blocks = -(-(starts + counts) // block_size)
    table = np.full((len(rows), int(num_blocks.max())), -1, np.int64)
    for entry, (ids, count) in enumerate(zip(batch.block_tables, num_blocks, strict=True)):
        table[entry, :count] = ids[:count]
    entries = np.repeat(np.arange(len(rows)), counts)
    positions = np.arange(len(entries)) + (starts - rows)[entries]
    slots = table[entries, positions // block_size] * block_size + positions % block_size
    return Spans(rows, starts, counts, table, slots)
