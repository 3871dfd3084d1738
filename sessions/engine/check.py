"""The check every start makes: a short text over the block pool must give the logits of the model's own attention.

The text stands in shuffled blocks and is computed in chunks and one by one; so a wrong slot, mask, position, head or
weight shows, and so does a kernel that this machine computes wrongly.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.linear import Quantization
from sessions.engine.loaded import Arithmetic, Forward
from sessions.engine.native.kernels import Kernels, NativeAttention, NativePool
from sessions.engine.torch_attention import TorchAttention
from sessions.errors import ModelRefused

LENGTH = 24
"""Tokens of the text: several blocks of 8, more than one chunk."""

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2, torch.int8: 5e-2}
"""Largest error of the logits, relative to the largest logit, by dtype."""

PACKED_TOLERANCE: dict[Quantization, float] = {"none": 2e-3, "fp16": 1e-2, "int8": 0.1}
"""The same by quantisation: it catches a broken kernel or an overflow, not a loss of quality."""

BLOCK_SIZE = 8


def tolerance(arithmetic: Arithmetic) -> float:
    """The loosest that one of its parts needs."""
    return max(
        PACKED_TOLERANCE[arithmetic.quantization],
        TOLERANCE.get(arithmetic.dtype, 8e-2),
        TOLERANCE.get(arithmetic.kv_dtype, 8e-2),
    )


@dataclass(frozen=True, slots=True)
class Text:
    """token_ids [n] int64; logits [n, vocabulary] fp32: what the model's own attention says of them."""

    token_ids: torch.Tensor
    logits: torch.Tensor


class PagedCheck:
    """Runs a text over a small pool of its own. kernels: those given, or None if their limits do not hold for it."""

    def __init__(
        self, layers: tuple[LayerLayout, ...], text: Text, kv_dtype: torch.dtype, kernels: Kernels | None
    ) -> None:
        self._text = text
        num_tokens = len(text.token_ids)
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        self._cache = KVCache(layers, num_blocks, BLOCK_SIZE, kv_dtype, text.token_ids.device)
        self._table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).to(torch.int32).numpy()
        self.kernels = kernels if kernels is not None and kernels.can_attend(self._cache) else None
        self._pool = NativePool(self.kernels, self._cache, num_tokens) if self.kernels else None

    def run(self, forward: Forward, limit: float) -> None:
        """Raises ModelRefused when the logits differ by more than `limit` of the largest."""
        num_tokens = len(self._text.token_ids)
        got: list[torch.Tensor] = []
        for start, end in pairwise([0, 10, num_tokens - 2, num_tokens - 1, num_tokens]):
            batch = self._batch(start, end)
            attention = NativeAttention(self._pool, batch) if self._pool else TorchAttention(batch, self._cache)
            got.append(forward(batch, attention))
        wanted = self._text.logits
        error = (torch.cat(got).float() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)
        if not error.item() <= limit:
            raise ModelRefused(f"over the block pool its logits differ from its own attention by {error.item():.1e}")

    def _batch(self, start: int, end: int) -> Batch:
        device = self._text.token_ids.device
        return Batch(
            input_ids=self._text.token_ids[None, start:end],
            positions=torch.arange(start, end, device=device)[None],
            logit_rows=torch.arange(end - start, device=device),
            sequences=np.array([(self._table.ctypes.data, 0, start, end - start, 0)], SEQUENCE),
            block_tables=(self._table,),
        )
