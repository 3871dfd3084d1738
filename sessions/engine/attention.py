"""Attention over the block pool, registered with transformers so that a model that asks its interface for attention
uses it unmodified (https://huggingface.co/docs/transformers/attention_interface).

The model passes the keyword `paged` through its forward; each attention layer hands its K and V to `paged.attend`,
which writes them at `slot_mapping` and attends through the block tables. Two receivers: `PagedAttention` (a step) and
`LayoutProbe` (at load: what shapes does this model want?).
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sessions.engine.batch import Batch, Chunk
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.errors import ModelRefused

IMPLEMENTATION = "anaphora_paged"
"""The name under which the function is registered: `model.set_attn_implementation(IMPLEMENTATION)`."""

UNSUPPORTED = {"softcap": "logit soft-capping", "s_aux": "attention sinks", "position_bias": "a learned position bias"}
"""Keywords by which a layer asks for arithmetic that is not done here."""


class LayerCall(NamedTuple):
    """What one attention layer asks for: query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv]."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    sliding_window: int | None


class Receiver(Protocol):
    """What the keyword `paged` carries."""

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Returns [1, T, Hq, Dv]."""


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every attention layer; see its `sdpa_attention_forward` for the contract.

    Raises ModelRefused if the layer asks for arithmetic that is not done here.
    """
    for name, what in UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise ModelRefused(f"its attention uses {what}")
    if attention_mask is not None:
        raise ModelRefused("it builds its own attention mask")
    receiver: Receiver = kwargs["paged"]
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return receiver.attend(LayerCall(layer, query, key, value, scale, sliding_window)), None


AttentionInterface.register(IMPLEMENTATION, paged_attention)


class PagedAttention:
    """One step's attention. Masks are built once per window and shared by all layers."""

    def __init__(self, batch: Batch, cache: KVCache) -> None:
        self._batch = batch
        self._cache = cache
        self._decode_masks: dict[int | None, torch.Tensor] = {}
        self._chunk_masks: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def attend(self, call: LayerCall) -> torch.Tensor:
        batch = self._batch
        layer, query, key, value, scaling, sliding_window = call
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(0, batch.slot_mapping, key[0].transpose(0, 1).to(keys.dtype))
        values.index_copy_(0, batch.slot_mapping, value[0].transpose(0, 1).to(values.dtype))
        num_decodes = len(batch.decode_lengths)
        pieces = []
        if num_decodes:
            pieces.append(self._attend_decodes(query[0, :, :num_decodes], keys, values, scaling, sliding_window))
        for chunk in batch.chunks:
            rows = query[:, :, chunk.row : chunk.row + chunk.num_tokens]
            pieces.append(self._attend_chunk(chunk, rows, keys, values, scaling, sliding_window))
        return (torch.cat(pieces) if len(pieces) > 1 else pieces[0])[None]

    def _attend_decodes(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """query [Hq, D, d] -> [D, Hq, dv]. The query heads of a KV head are its rows: K and V are never repeated."""
        slots = self._batch.decode_slots
        num_rows, length = slots.shape
        num_kv_heads, num_heads = keys.shape[1], query.shape[0]
        flat = slots.flatten()
        k = keys.index_select(0, flat).view(num_rows, length, num_kv_heads, -1).transpose(1, 2).to(query.dtype)
        v = values.index_select(0, flat).view(num_rows, length, num_kv_heads, -1).transpose(1, 2).to(query.dtype)
        q = query.transpose(0, 1).reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, -1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._decode_mask(window), scale=scaling)
        return out.reshape(num_rows, num_heads, -1)

    def _attend_chunk(
        self,
        chunk: Chunk,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """query [1, Hq, t, d] -> [t, Hq, dv]."""
        k = keys.index_select(0, chunk.kv_slots).transpose(0, 1)[None].to(query.dtype)
        v = values.index_select(0, chunk.kv_slots).transpose(0, 1)[None].to(query.dtype)
        groups = query.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mask = self._chunk_mask(chunk, window)
        out = scaled_dot_product_attention(query, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
        return out[0].transpose(0, 1)

    def _decode_mask(self, window: int | None) -> torch.Tensor:
        """[D, 1, 1, L] bool: which slots of the padded table each row sees."""
        if window not in self._decode_masks:
            lengths = self._batch.decode_lengths[:, None]
            position = torch.arange(self._batch.decode_slots.shape[1], device=lengths.device)[None]
            mask = position < lengths
            if window is not None:
                mask &= position >= lengths - window
            self._decode_masks[window] = mask[:, None, None]
        return self._decode_masks[window]

    def _chunk_mask(self, chunk: Chunk, window: int | None) -> torch.Tensor | None:
        """[t, start + t] bool; None where plain causal says it all."""
        name = (chunk.row, window)
        if name not in self._chunk_masks:
            length = chunk.start + chunk.num_tokens
            if chunk.start == 0 and (window is None or window >= length):
                self._chunk_masks[name] = None
            else:
                key_position = torch.arange(length, device=chunk.kv_slots.device)[None]
                query_position = torch.arange(chunk.start, length, device=chunk.kv_slots.device)[:, None]
                mask = key_position <= query_position
                if window is not None:
                    mask &= key_position > query_position - window
                self._chunk_masks[name] = mask
        return self._chunk_masks[name]


class LayoutProbe:
    """Records the KV shape of every layer that asks for attention during one plain causal forward."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerLayout] = {}

    def attend(self, call: LayerCall) -> torch.Tensor:
        layer, query, key, value, scaling, sliding_window = call
        if layer in self.layers:
            raise ModelRefused(f"two attention layers call themselves layer {layer}")
        self.layers[layer] = LayerLayout(key.shape[1], key.shape[3], value.shape[3], sliding_window)
        groups = query.shape[1] // key.shape[1]
        k, v = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return scaled_dot_product_attention(query, k, v, is_causal=True, scale=scaling).transpose(1, 2)
