"""The door between transformers and the block pool: an attention function registered with `AttentionInterface`, so that
a model that asks its interface for attention uses it unmodified (https://huggingface.co/docs/transformers/attention_interface).

The model passes the keyword `paged` through its forward; each attention layer hands its K and V to `paged.attend`,
which writes them to the pool and attends through the block tables. `LayoutProbe` asks at load: what does it want?
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sessions.engine.attention import Receiver
from sessions.engine.kv_cache import LayerLayout
from sessions.errors import ModelRefused

IMPLEMENTATION = "anaphora_paged"
"""The name under which the function is registered: `model.set_attn_implementation(IMPLEMENTATION)`."""

UNSUPPORTED = {"softcap": "logit soft-capping", "s_aux": "attention sinks", "position_bias": "a learned position bias"}
"""Keywords by which a layer asks for arithmetic that is not done here."""


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

    query [1, Hq, T, d], key [1, Hkv, T, d], value [1, Hkv, T, dv] -> [1, T, Hq, dv].
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
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return receiver.attend(layer, q, k, v, scale, sliding_window)[None], None


AttentionInterface.register(IMPLEMENTATION, paged_attention)


class LayoutProbe:
    """Records what every layer that asks for attention wants during one plain causal forward."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerLayout] = {}

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        if layer in self.layers:
            raise ModelRefused(f"two attention layers call themselves layer {layer}")
        _, num_kv_heads, value_head_dim = value.shape
        self.layers[layer] = LayerLayout(
            query.shape[1], num_kv_heads, key.shape[2], value_head_dim, scaling, sliding_window
        )
        groups = query.shape[1] // num_kv_heads
        q = query.transpose(0, 1)
        k, v = (kv.transpose(0, 1).repeat_interleave(groups, dim=0) for kv in (key, value))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling).transpose(0, 1)
