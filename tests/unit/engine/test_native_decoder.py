"""A decoder's step as one call: the bits of its operators one by one, in the pool and in the logits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.fused import FusedDecoder
from sessions.engine.kv_cache import KVCache
from sessions.engine.loaded import LoadedModel, LoadOptions
from sessions.engine.loader import load_model
from sessions.engine.native.attention import NativeAttention, NativePool
from sessions.engine.native.kernels import Kernels
from tests.oracle import SERVED, tiny_model

Entry = tuple[int, int, int]
"""Request, start, end."""

STEPS: list[tuple[list[Entry], list[int]]] = [
    ([(0, 0, 20), (1, 0, 3)], []),
    ([(1, 3, 4), (0, 20, 37)], [0]),
    ([(1, 4, 5), (0, 37, 38)], [1, 0]),
    ([(1, 5, 8), (0, 38, 44), (2, 0, 70)], [8, 2, 1, 4]),
    ([(1, 8, 9), (0, 44, 45), (2, 70, 71)], [0, 1, 2]),
    ([(2, 71, 72)], [0]),
    ([(2, 72, 90)], list(range(18))),
]
"""A step's entries, one token first, and rows whose logits are wanted: none, the last, some, out of order, all."""


def load(kind: str, folder: Path, kernels: Kernels, kv_dtype: str) -> LoadedModel:
    tiny_model(kind, SERVED[kind]).save_pretrained(folder)
    options = LoadOptions(device="cpu", dtype="float32", quantization="int8", kv_dtype=kv_dtype)
    return load_model(folder, options, kernels, lambda _: None)


def batch_of(entries: list[Entry], logit_rows: list[int]) -> Batch:
    tables = [np.arange(12, dtype=np.int32) * 3 + request for request, _, _ in entries]
    starts = np.cumsum([0, *(end - start for _, start, end in entries)])
    positions = torch.cat([torch.arange(start, end) for _, start, end in entries])
    records = [
        (table.ctypes.data, row, start, end - start, 0)
        for table, row, (_, start, end) in zip(tables, starts, entries, strict=False)
    ]
    ids = (positions * 7 + torch.arange(len(positions))) % 120
    return Batch(
        ids[None],
        positions[None],
        torch.tensor(logit_rows, dtype=torch.int64),
        np.array(records, SEQUENCE),
        tuple(tables),
    )


@pytest.mark.parametrize("kv_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "smollm3"])
def test_one_call_gives_the_bits_of_its_operators(kind: str, kv_dtype: str, tmp_path: Path, kernels: Kernels) -> None:
    loaded = load(kind, tmp_path, kernels, kv_dtype)
    decoder = getattr(loaded.forward, "__self__", None)
    assert isinstance(decoder, FusedDecoder)
    caches = [KVCache(loaded.layers, 40, 8, loaded.kv_dtype, loaded.device) for _ in "ab"]
    pools = [NativePool(kernels, cache, 256) for cache in caches]
    with torch.inference_mode():
        for entries, logit_rows in STEPS:
            batch = batch_of(entries, logit_rows)
            whole = decoder.forward(batch, NativeAttention(pools[0], batch))
            parts = decoder.by_operators(batch, NativeAttention(pools[1], batch))
            assert whole.shape == (len(logit_rows), parts.shape[1])
            assert torch.equal(whole, parts)
    for name in ("keys", "values", "key_scales", "value_scales"):
        for one, other in zip(getattr(caches[0], name), getattr(caches[1], name), strict=True):
            assert torch.equal(one, other)


def test_a_long_position_has_its_angles(tmp_path: Path, kernels: Kernels) -> None:
    loaded = load("llama", tmp_path, kernels, "float32")
    decoder = getattr(loaded.forward, "__self__", None)
    assert isinstance(decoder, FusedDecoder)
    cache = KVCache(loaded.layers, 1400, 8, loaded.kv_dtype, loaded.device)
    pool = NativePool(kernels, cache, 16_384)
    table = np.arange(1400, dtype=np.int32)
    batch = Batch(
        torch.tensor([[5]]),
        torch.tensor([[10_000]]),
        torch.tensor([0]),
        np.array([(table.ctypes.data, 0, 10_000, 1, 0)], SEQUENCE),
        (table,),
    )
    with torch.inference_mode():
        whole = decoder.forward(batch, NativeAttention(pool, batch))
        assert torch.equal(whole, decoder.by_operators(batch, NativeAttention(pool, batch)))


@pytest.mark.parametrize("token_id", [-1, 1 << 40])
def test_a_token_that_the_model_does_not_have_is_refused(token_id: int, tmp_path: Path, kernels: Kernels) -> None:
    loaded = load("llama", tmp_path, kernels, "float32")
    cache = KVCache(loaded.layers, 2, 8, loaded.kv_dtype, loaded.device)
    table = np.arange(2, dtype=np.int32)
    one = torch.tensor([[0]])
    batch = Batch(
        torch.tensor([[token_id]]), one, one[0], np.array([(table.ctypes.data, 0, 0, 1, 0)], SEQUENCE), (table,)
    )
    with pytest.raises(IndexError):
        loaded.forward(batch, NativeAttention(NativePool(kernels, cache, 16), batch))
