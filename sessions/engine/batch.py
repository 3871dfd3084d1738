"""One step's schedule as packed tensors. No padding between requests: batch dimension 1, all tokens in one row.

    rows        [ d0 d1 d2 | p0 p0 p0 p0 p0 | p1 p1 p1 ]        T tokens
                  ^ one-token entries first   ^ then chunks, one after another
    positions   [ 57 12 99 | 0  1  2  3  4  | 32 33 34 ]        of each token in its own request
    slot_mapping: where each row's K and V are written

One-token entries attend together over a padded [D, L] table of slots; each chunk attends over its own slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sessions.engine.block import Block
from sessions.engine.request import Request
from sessions.engine.schedule import Scheduled

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [row, row + num_tokens) are tokens [start, start + num_tokens) of one request.

    kv_slots: [start + num_tokens] slots of all tokens these rows may see, in order.
    """

    row: int
    num_tokens: int
    start: int
    kv_slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors on the model's device; T rows, S of them sampled, D one-token entries of at most L tokens.

    input_ids, positions: [1, T] int64. slot_mapping: [T] int64. logit_rows: [S] int64.
    decode_slots: [D, L] int64, padded with slot 0. decode_lengths: [D] int64.
    sampled: the S requests in the order of `logit_rows`; `sampled_order`: where each stands among the schedule's
    sampling entries.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    logit_rows: torch.Tensor
    decode_slots: torch.Tensor
    decode_lengths: torch.Tensor
    chunks: tuple[Chunk, ...]
    sampled: tuple[Request, ...]
    sampled_order: tuple[int, ...]


def block_ids(block_table: Sequence[Block], num_blocks: int) -> IntArray:
    """[num_blocks] ids of the first blocks of a table."""
    return np.fromiter((block.id for block in block_table[:num_blocks]), np.int64, num_blocks)


def slots_of(block_table: Sequence[Block], num_tokens: int, block_size: int) -> IntArray:
    """[num_tokens] slots of a request's first tokens."""
    ids = block_ids(block_table, -(-num_tokens // block_size))
    return (ids[:, None] * block_size + np.arange(block_size)).reshape(-1)[:num_tokens]


def build_batch(entries: Sequence[Scheduled], block_size: int, device: torch.device) -> Batch:
    """Pack a step. `entries` is not empty; every entry has its blocks."""
    order = sorted(range(len(entries)), key=lambda index: entries[index].num_tokens > 1)
    slots = [slots_of(e.request.block_table, e.start + e.num_tokens, block_size) for e in entries]
    sampling_rank = np.cumsum([entry.samples for entry in entries]) - 1
    input_ids: list[int] = []
    positions, slot_mapping = [], []
    logit_rows, sampled, sampled_order = [], [], []
    decodes: list[IntArray] = []
    chunks: list[Chunk] = []
    for index in order:
        entry, entry_slots = entries[index], slots[index]
        end = entry.start + entry.num_tokens
        if entry.num_tokens == 1:
            decodes.append(entry_slots)
        else:
            kv_slots = torch.from_numpy(entry_slots).to(device)
            chunks.append(Chunk(len(input_ids), entry.num_tokens, entry.start, kv_slots))
        input_ids += entry.request.token_ids[entry.start : end]
        positions.append(np.arange(entry.start, end))
        slot_mapping.append(entry_slots[entry.start :])
        if entry.samples:
            logit_rows.append(len(input_ids) - 1)
            sampled.append(entry.request)
            sampled_order.append(int(sampling_rank[index]))
    lengths = np.array([len(decode) for decode in decodes], np.int64)
    decode_slots = np.zeros((len(decodes), int(lengths.max(initial=0))), np.int64)
    for row, decode in enumerate(decodes):
        decode_slots[row, : len(decode)] = decode

    def tensor(values: IntArray | list[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(device, non_blocking=True)

    return Batch(
        input_ids=tensor(input_ids)[None],
        positions=tensor(np.concatenate(positions))[None],
        slot_mapping=tensor(np.concatenate(slot_mapping)),
        logit_rows=tensor(logit_rows),
        decode_slots=tensor(decode_slots),
        decode_lengths=tensor(lengths),
        chunks=tuple(chunks),
        sampled=tuple(sampled),
        sampled_order=tuple(sampled_order),
    )
