"""What attention is to a forward: a `Receiver` that takes a layer's new K and V, keeps them, and attends.

Receivers: `NativeAttention` (CPU kernels) or `TorchAttention`, over the block pool, made for one step; and
`interface.LayoutProbe`, while a model is measured.
"""

from typing import Protocol

import torch


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
