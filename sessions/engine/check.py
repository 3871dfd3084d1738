"""The check every start makes: a short text over the block pool must give the logits of the model's own attention.

The text stands in shuffled blocks and is computed in chunks and one by one; so a wrong slot, mask, position, head or
weight shows, and so does a kernel that this machine computes wrongly.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from sessions.engine.attending import open_attention
from sessions.engine.attention import AttentionKind
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.linear import Quantization
from sessions.engine.loaded import Arithmetic, Forward
from sessions.engine.native.kernels import Kernels
from sessions.errors import ModelRefused

LENGTH = 24
"""Tokens of the text: several blocks of 8, more than one chunk."""

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2, torch.int8: 5e-2}
"""Largest error of the logits, relative to the largest logit, by dtype."""

PACKED_TOLERANCE: dict[Quantization, float] = {"none": 2e-3, "file": 1e-2, "fp16": 1e-2, "int8": 0.1}
"""The same by quantisation: it catches a broken kernel or an overflow, not a loss of quality."""

BLOCK_SIZE: dict[AttentionKind, int] = {"kernels": 8, "flex": 16, "sdpa": 8}
"""Tokens of its blocks: the fewest that each kind of attention can read, and sdpa could read fewer."""

SPARE = 3
"""Blocks that the text does not use, and that stand among its own."""


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
    """Runs a text over a small pool of its own, with one kind of attention. kernels: needed for 'kernels' alone."""

    def __init__(
        self,
        layers: tuple[LayerLayout, ...],
        text: Text,
        kv_dtype: torch.dtype,
        kind: AttentionKind,
        kernels: Kernels | None,
    ) -> None:
        self._text = text
        num_tokens, block_size = len(text.token_ids), BLOCK_SIZE[kind]
        num_blocks = -(-num_tokens // block_size)
        order = torch.randperm(num_blocks + SPARE, generator=torch.Generator().manual_seed(0))
        self._table = order[:num_blocks].to(torch.int32).numpy()
        cache = KVCache(layers, len(order), block_size, kv_dtype, text.token_ids.device, tokens_first=kind != "kernels")
        self._attention = open_attention(kind, cache, kernels, num_tokens)

    def run(self, forward: Forward, limit: float) -> None:
        """Raises ModelRefused when the logits differ by more than `limit` of the largest."""
        num_tokens = len(self._text.token_ids)
        got: list[torch.Tensor] = []
        for start, end in pairwise([0, 10, num_tokens - 2, num_tokens - 1, num_tokens]):
            batch = self._batch(start, end)
            got.append(forward(batch, self._attention(batch)))
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
