"""What attention is to a forward: a `Receiver` that takes a layer's new K and V, keeps them, and attends.

Receivers over the block pool, made for one step (`attending` picks one kind at start):

    kernels   `NativeAttention`   CPU; reads blocks in place
    flex      `FlexAttention`     CUDA; reads blocks in place
    sdpa      `TorchAttention`    anywhere; gathers what a row sees

and `interface.LayoutProbe`, while a model is measured.
"""

from typing import Literal, Protocol

import torch

AttentionKind = Literal["kernels", "flex", "sdpa"]


class Receiver(Protocol):
    """Attention of one step; what the keyword `paged` carries through a transformers model (`interface`)."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """query [T, Hq, d], key [T, Hkv, d], value [T, Hkv, dv], K after RoPE -> [T, Hq, dv]."""
