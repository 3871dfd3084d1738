"""Attention over the block pool in plain torch: gathers what a row sees, then SDPA. Any device and dtype.

What the CPU kernels do in place (`native/`), done with copies: the fallback where they cannot be built, and the path on
other devices. One-token entries attend together over a padded [D, L] table; each chunk attends over its own slots.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sessions.engine.batch import Batch
from sessions.engine.block_table import Ids
from sessions.engine.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows [row, row + num_tokens) are tokens [start, ..) of one request; slots: [start + num_tokens], all they see."""

    row: int
    num_tokens: int
    start: int
    slots: torch.Tensor


class TorchAttention:
    """One step's attention; see `attention.Receiver`. Masks are built once per window and shared by all layers."""

    def __init__(self, batch: Batch, cache: KVCache) -> None:
        self._cache = cache
        self._decode_masks: dict[int | None, torch.Tensor] = {}
        self._chunk_masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        slots = [
            _slots_of(table, int(entry["start"] + entry["num_tokens"]), cache.block_size)
            for table, entry in zip(batch.block_tables, batch.sequences, strict=True)
        ]

        def tensor(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
            return torch.from_numpy(values).to(cache.device)

        starts = batch.sequences["start"]
        self._new_slots = tensor(np.concatenate([seen[start:] for seen, start in zip(slots, starts, strict=True)]))
        decodes = [seen for seen, count in zip(slots, batch.sequences["num_tokens"], strict=True) if count == 1]
        lengths = np.array([len(seen) for seen in decodes], np.int64)
        padded = np.zeros((len(decodes), int(lengths.max(initial=0))), np.int64)
        for row, seen in enumerate(decodes):
            padded[row, : len(seen)] = seen
        self._decode_slots, self._decode_lengths = tensor(padded), tensor(lengths)
        self._chunks = [
            _Chunk(int(entry["row"]), int(entry["num_tokens"]), int(entry["start"]), tensor(seen))
            for entry, seen in zip(batch.sequences[len(decodes) :], slots[len(decodes) :], strict=True)
        ]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """query [T, Hq, d], key [T, Hkv, d], value [T, Hkv, dv] -> [T, Hq, dv]. Writes K and V to the pool first."""
        self._cache.write(layer, self._new_slots, key, value)
        num_decodes = len(self._decode_lengths)
        pieces = []
        if num_decodes:
            pieces.append(self._attend_decodes(layer, query[:num_decodes], scaling, sliding_window))
        for chunk in self._chunks:
            rows = query[chunk.row : chunk.row + chunk.num_tokens]
            pieces.append(self._attend_chunk(layer, chunk, rows, scaling, sliding_window))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _attend_decodes(self, layer: int, query: torch.Tensor, scaling: float, window: int | None) -> torch.Tensor:
        """query [D, Hq, d] -> [D, Hq, dv]. The query heads of a KV head are its rows: K and V are never repeated."""
        num_rows, length = self._decode_slots.shape
        k, v = self._cache.read(layer, self._decode_slots.flatten())
        num_heads, num_kv_heads = query.shape[1], k.shape[1]
        k = k.view(num_rows, length, num_kv_heads, -1).transpose(1, 2).to(query.dtype)
        v = v.view(num_rows, length, num_kv_heads, -1).transpose(1, 2).to(query.dtype)
        q = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, -1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._decode_mask(window), scale=scaling)
        return out.reshape(num_rows, num_heads, -1)

    def _attend_chunk(
        self, layer: int, chunk: _Chunk, query: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """query [t, Hq, d] -> [t, Hq, dv]."""
        k, v = (kv.transpose(0, 1)[None].to(query.dtype) for kv in self._cache.read(layer, chunk.slots))
        groups = query.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        q = query.transpose(0, 1)[None]
        mask = self._chunk_mask(chunk, window)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
        return out[0].transpose(0, 1)

    def _decode_mask(self, window: int | None) -> torch.Tensor:
        """[D, 1, 1, L] bool: which slots of the padded table each row sees."""
        if window not in self._decode_masks:
            lengths = self._decode_lengths[:, None]
            position = torch.arange(self._decode_slots.shape[1], device=lengths.device)[None]
            mask = position < lengths
            if window is not None:
                mask &= position >= lengths - window
            self._decode_masks[window] = mask[:, None, None]
        return self._decode_masks[window]

    def _chunk_mask(self, chunk: _Chunk, window: int | None) -> torch.Tensor | None:
        """[t, start + t] bool; None where plain causal says it all."""
        name = (chunk.row, window)
        if name not in self._chunk_masks:
            length = chunk.start + chunk.num_tokens
            if chunk.start == 0 and (window is None or window >= length):
                self._chunk_masks[name] = None
            else:
                key_position = torch.arange(length, device=chunk.slots.device)[None]
                query_position = torch.arange(chunk.start, length, device=chunk.slots.device)[:, None]
                mask = key_position <= query_position
                if window is not None:
                    mask &= key_position > query_position - window
                self._chunk_masks[name] = mask
        return self._chunk_masks[name]


def _slots_of(block_ids: Ids, num_tokens: int, block_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """[num_tokens] slots of a request's first tokens."""
    ids = block_ids[: -(-num_tokens // block_size)].astype(np.int64)
    return (ids[:, None] * block_size + np.arange(block_size)).reshape(-1)[:num_tokens]
