"""Attention over the pool is attention over what was written to it, on any device. On CPU the test itself is tested."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.linear import Quantization
from sessions.engine.loaded import Arithmetic, LoadedModel
from sessions.engine.runner import pick_attention

BLOCK_SIZE = 16
LENGTHS = [(40, 1), (17, 1), (0, 33), (50, 12)]
"""start and num_tokens of each entry: what is in the pool before, and what the step adds."""

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
NONE: Quantization = "none"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "limit"),
    [
        (torch.float32, torch.float32, 1e-4),
        (torch.bfloat16, torch.bfloat16, 3e-2),
        (torch.float16, torch.float16, 5e-3),
        (torch.float32, torch.int8, 2e-2),
        (torch.bfloat16, torch.int8, 4e-2),
    ],
)
def test_picked_attention_is_plain_attention(
    device: str, window: int | None, dtype: torch.dtype, kv_dtype: torch.dtype, limit: float
) -> None:
    layout = LayerLayout(8, 2, 64, 64, 0.125, window)
    generator = torch.Generator().manual_seed(1)
    whole = [
        [torch.randn(start + count, heads, 64, generator=generator) for heads in (8, 2, 2)] for start, count in LENGTHS
    ]
    place = torch.device(device)
    tables = torch.randperm(24, generator=generator).to(torch.int32).numpy().reshape(4, 6)
    cache = KVCache([layout], 24, BLOCK_SIZE, kv_dtype, place)
    loaded = LoadedModel(
        forward=refuse, layers=(layout,), arithmetic=Arithmetic(place, dtype, NONE, kv_dtype), max_model_len=96
    )
    attention = pick_attention(loaded, cache)

    def step(spans: list[tuple[int, int]]) -> torch.Tensor:
        rows = np.cumsum([0, *(count for _, count in spans)])
        records = [
            (table.ctypes.data, row, start, count, 0)
            for table, row, (start, count) in zip(tables, rows, spans, strict=False)
        ]
        ids = torch.zeros(1, int(rows[-1]), dtype=torch.int64)
        batch = Batch(ids, ids, ids[0], np.array(records, SEQUENCE), tuple(tables))
        q, k, v = (
            torch.cat([part[n][start : start + count] for part, (start, count) in zip(whole, spans, strict=True)])
            .to(place, dtype)
            for n in range(3)
        )  # fmt: skip
        return attention(batch).attend(0, q, k, v, layout.scaling, window).float().cpu()

    step([(0, max(start, 1)) for start, _ in LENGTHS])  # an entry without a past writes a token that is written again
    got = step(LENGTHS)
    wanted = torch.cat([plain(*parts, window)[start:] for parts, (start, _) in zip(whole, LENGTHS, strict=True)])
    assert (got - wanted).abs().max() < limit * wanted.abs().max()


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """[n, heads, d] each -> [n, heads, d], fp32 on CPU."""
    position = torch.arange(len(q))
    mask = position[None] <= position[:, None]
    if window is not None:
        mask &= position[None] > position[:, None] - window
    q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
    k, v = k.repeat_interleave(4, dim=0), v.repeat_interleave(4, dim=0)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.125).transpose(0, 1)


def refuse(batch: Batch, attention: Any) -> torch.Tensor:
    raise AssertionError("no forward here")
