"""The pool's tensors: what a token costs, and that whole blocks move with all that belongs to them."""

import numpy as np
import pytest
import torch

from sessions.engine.kv_cache import KVCache, LayerLayout, bytes_per_token, num_blocks_for, round_to_int8
from sessions.pool_size import parse_pool_size

CPU = torch.device("cpu")
LAYERS = (LayerLayout(9, 3, 64, 64, 0.125), LayerLayout(4, 2, 16, 24, 0.25))
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


ORDERS = [False, True]


def noisy(dtype: torch.dtype, tokens_first: bool, num_blocks: int = 5, block_size: int = 8) -> KVCache:
    """A pool with other numbers in every slot."""
    cache = KVCache(LAYERS, num_blocks, block_size, dtype, CPU, tokens_first=tokens_first)
    generator = torch.Generator().manual_seed(1)
    slots = torch.arange(num_blocks * block_size)
    for layer, kv in enumerate(LAYERS):
        key = torch.randn(len(slots), kv.num_kv_heads, kv.head_dim, generator=generator)
        value = torch.randn(len(slots), kv.num_kv_heads, kv.value_head_dim, generator=generator)
        cache.write(layer, slots, key * (1 + slots)[:, None, None], value * (1 + slots)[:, None, None])
    return cache


def tokens(cache: KVCache, block: int) -> list[torch.Tensor]:
    """K and V of a block, in every layer."""
    slots = block * cache.block_size + torch.arange(cache.block_size)
    return [part for layer in range(len(LAYERS)) for part in cache.read(layer, slots)]


def assert_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tokens_first", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_takes_what_its_tokens_take(dtype: torch.dtype, tokens_first: bool) -> None:
    cache = KVCache(LAYERS, 5, 8, dtype, CPU, tokens_first=tokens_first)
    assert cache.block_bytes == 8 * bytes_per_token(LAYERS, dtype)


def test_int8_holds_nearly_twice_the_tokens_of_float16() -> None:
    size = parse_pool_size("64MiB")
    layers = LAYERS[:1]
    float16, int8 = (num_blocks_for(size, layers, 16, dtype, CPU) for dtype in (torch.float16, torch.int8))
    assert int8 / float16 == pytest.approx(128 / 68, rel=1e-3)


@pytest.mark.parametrize("layers", [LAYERS, (LayerLayout(8, 8, 8, 8, 1),)])
def test_no_two_dtypes_or_orders_have_one_layout(layers: tuple[LayerLayout, ...]) -> None:
    """Also where heads, head size and block size are one number."""
    layouts = {KVCache(layers, 2, 8, dtype, CPU, tokens_first=order).layout for dtype in DTYPES for order in ORDERS}
    assert len(layouts) == len(DTYPES) * len(ORDERS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_orders_hold_the_same_tokens(dtype: torch.dtype) -> None:
    one, other = (noisy(dtype, order) for order in ORDERS)
    for block in range(5):
        assert_equal(tokens(one, block), tokens(other, block))


def test_tokens_first_the_pool_is_one_row_of_slots() -> None:
    cache = noisy(torch.float32, tokens_first=True)
    for layer, kv in enumerate(LAYERS):
        key, value = cache.in_place(layer)
        assert key.shape == (1, kv.num_kv_heads, 40, kv.head_dim)
        assert key.data_ptr() == cache.keys[layer].data_ptr() and value.data_ptr() == cache.values[layer].data_ptr()
        for copied, there in zip(cache.read(layer, torch.arange(40)), (key, value), strict=True):
            assert torch.equal(there[0].transpose(0, 1), copied)


@pytest.mark.parametrize("tokens_first", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copied_blocks_read_as_their_sources(dtype: torch.dtype, tokens_first: bool) -> None:
    cache = noisy(dtype, tokens_first)
    first, second = tokens(cache, 0), tokens(cache, 1)
    cache.copy_blocks([0, 1], [1, 4])
    assert_equal(tokens(cache, 1), first)
    assert_equal(tokens(cache, 4), second)


@pytest.mark.parametrize("tokens_first", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_that_left_and_came_back_elsewhere_are_the_same(dtype: torch.dtype, tokens_first: bool) -> None:
    cache, other = noisy(dtype, tokens_first), KVCache(LAYERS, 7, 8, dtype, CPU, tokens_first=tokens_first)
    payload = np.empty((2, cache.block_bytes), np.uint8)
    cache.read_blocks([3, 1], payload)
    other.write_blocks([6, 2], payload)
    assert_equal(tokens(other, 6), tokens(cache, 3))
    assert_equal(tokens(other, 2), tokens(cache, 1))


def test_rounding_errs_by_half_a_step_of_the_largest_number_at_most() -> None:
    x = torch.randn(40, 3, 64, generator=torch.Generator().manual_seed(2)) * torch.logspace(-20, 20, 40)[:, None, None]
    rounded, scales = round_to_int8(x)
    error = (rounded * scales[..., None] - x).abs() / x.abs().amax(dim=-1, keepdim=True)
    assert error.max() < 0.5 / 127 * 1.001
    assert rounded.abs().amax(dim=-1).eq(127).all()
