"""Blocks go to the host and come back the same, on any device. On CPU the test itself is tested."""

import numpy as np
import pytest
import torch

from sessions.engine.kv_cache import KVCache, LayerLayout

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
LAYERS = [LayerLayout(8, 2, 64, 64, 0.125), LayerLayout(8, 2, 64, 32, 0.125)]


def noisy(device: str, dtype: torch.dtype) -> KVCache:
    cache = KVCache(LAYERS, 40, 16, dtype, torch.device(device))
    for part in cache._bytes:
        part.copy_(torch.randint(0, 256, part.shape, dtype=torch.uint8))
    return cache


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("padding", [0, 96], ids=["whole rows", "padded rows"])
def test_what_left_and_came_back_elsewhere_is_the_same(device: str, dtype: torch.dtype, padding: int) -> None:
    cache, other = noisy(device, dtype), noisy(device, dtype)
    sources, destinations = [3, 1, 39, 17], [8, 9, 0, 2]
    rows = cache.host_rows(len(sources) + 1, cache.block_bytes + padding)
    assert not rows.any()
    cache.read_blocks(sources, rows[:-1, : cache.block_bytes])
    assert not rows[-1].any() and not rows[:, cache.block_bytes :].any()
    other.write_blocks(destinations, rows[:-1, : cache.block_bytes])
    again = np.empty((len(sources), cache.block_bytes), np.uint8)
    other.read_blocks(destinations, again)
    assert (again == rows[:-1, : cache.block_bytes]).all()
    for part, twin in zip(cache._bytes, other._bytes, strict=True):
        assert (part[torch.tensor(sources)].cpu() == twin[torch.tensor(destinations)].cpu()).all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_copied_is_what_was_queued_before(device: str) -> None:
    """The copy waits for the writes that were asked for before it, which a GPU has not done yet."""
    cache = noisy(device, torch.float32)
    rows = cache.host_rows(cache.num_blocks, cache.block_bytes)
    for number in range(20):
        for part in cache._bytes:
            part.fill_(number)
        cache.read_blocks(range(cache.num_blocks), rows)
        assert (rows == number).all()


@pytest.mark.gpu
@NO_GPU
def test_rows_for_a_gpu_are_pinned() -> None:
    assert torch.from_numpy(noisy("cuda", torch.float32).host_rows(3, 4096)).is_pinned()
