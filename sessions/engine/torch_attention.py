"""Attention over the block pool in plain torch: gathers what a row sees, then SDPA. Any device and dtype.

What others do in place (`native/`, `flex_attention`), done with copies: the fallback where they cannot be had.
One-token entries attend together over padded slots [D, L]; each chunk attends over its own slots.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.spans import Ints, spans_of


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
        spans = spans_of(batch, cache.block_size)

        def tensor(values: Ints) -> torch.Tensor:
            return torch.from_numpy(values).to(cache.device)

        self._new_slots = tensor(spans.slots)
        offsets = torch.arange(cache.block_size, device=cache.device)
        slots = (tensor(spans.table)[..., None] * cache.block_size + offsets).flatten(1)
        num_decodes = int((spans.counts == 1).sum())
        self._decode_lengths = tensor(spans.ends[:num_decodes])
        length = int(spans.ends[:num_decodes].max(initial=0))
        # Padding is the row's own new token: another request's might not be finite, and masked is not unread.
        sees = torch.arange(length, device=cache.device) < self._decode_lengths[:, None]
        self._decode_slots = torch.where(sees, slots[:num_decodes, :length], self._new_slots[:num_decodes, None])
        self._chunks = [
            _Chunk(row, count, start, seen[: start + count])
            for row, count, start, seen in zip(
                spans.rows[num_decodes:].tolist(),
                spans.counts[num_decodes:].tolist(),
                spans.starts[num_decodes:].tolist(),
                slots[num_decodes:],
                strict=True,
            )
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
        num_rows, num_heads, _ = query.shape
        k, v = (
            kv.view(num_rows, -1, *kv.shape[1:]).transpose(1, 2).to(query.dtype)
            for kv in self._cache.read(layer, self._decode_slots.flatten())
        )
        num_kv_heads = k.shape[1]
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
        """[D, 1, 1, L] bool: which of the padded slots each row sees."""
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
