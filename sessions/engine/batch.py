"""One step's schedule, packed. No padding between requests: batch dimension 1, all tokens in one row.

    rows        [ d0 d1 d2 | p0 p0 p0 p0 p0 | p1 p1 p1 ]        T tokens
                  ^ one-token entries first   ^ then chunks, one after another
    positions   [ 57 12 99 | 0  1  2  3  4  | 32 33 34 ]        of each token in its own request
    sequences   one record per entry: where its block table lies, its rows, its positions

Work per entry, none per block: block tables are handed over by address (`BlockTable`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sessions.engine.block_table import Ids
from sessions.engine.schedule import Draw, Scheduled

SEQUENCE = np.dtype(
    [("block_table", np.uint64), ("row", np.int32), ("start", np.int32), ("num_tokens", np.int32), ("unused", np.int32)]
)
"""Rows [row, row + num_tokens) are tokens [start, start + num_tokens) of one request; as in attention.h."""


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows of E entries, S of them sampled, P scored. Tensors are on the model's device.

    input_ids, positions: [1, T] int64. logit_rows: [S + P] int64. sequences: [E] SEQUENCE, one-token entries first.
    block_tables: [E] views of the block ids, which also keep the memory that `sequences` points to.
    sampled: what each of the S rows draws, in the order of `logit_rows`, an entry's rows together and in order.
    scored: entries whose prompts are scored, and the rows of each; they stand after the sampled ones, in this order.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor
    sequences: npt.NDArray[np.void]
    block_tables: tuple[Ids, ...]
    sampled: tuple[Draw, ...] = ()
    scored: tuple[tuple[int, range], ...] = ()


def build_batch(entries: Sequence[Scheduled], device: torch.device) -> Batch:
    """Pack a step. `entries` is not empty; every entry has its blocks."""
    order = sorted(range(len(entries)), key=lambda index: entries[index].num_rows > 1)
    input_ids: list[int] = []
    positions, tables, records = [], [], []
    logit_rows: list[int] = []
    scored_rows: list[int] = []
    sampled: list[Draw] = []
    scored: list[tuple[int, range]] = []
    for index in order:
        entry = entries[index]
        request, end = entry.request, entry.start + entry.num_tokens
        rows = request.rows_to_score(entry.start, end)
        if rows:
            scored.append((index, rows))
            scored_rows += range(len(input_ids) + rows.start - entry.start, len(input_ids) + rows.stop - entry.start)
        records.append((request.block_table.address, len(input_ids), entry.start, entry.num_rows, 0))
        tables.append(request.block_table.ids)
        input_ids += request.token_ids[entry.start : end]
        input_ids += entry.drafts
        positions.append(np.arange(entry.start, end + len(entry.drafts)))
        if entry.samples:
            num_draws = 1 + len(entry.drafts)
            logit_rows += range(len(input_ids) - num_draws, len(input_ids))
            sampled += [Draw(index, request, entry.drafts[:count]) for count in range(num_draws)]

    def tensor(values: npt.NDArray[np.int64] | list[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(device, non_blocking=True)

    return Batch(
        input_ids=tensor(input_ids)[None],
        positions=tensor(np.concatenate(positions))[None],
        logit_rows=tensor(logit_rows + scored_rows),
        sequences=np.array(records, SEQUENCE),
        block_tables=tuple(tables),
        sampled=tuple(sampled),
        scored=tuple(scored),
    )
