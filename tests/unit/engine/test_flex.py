"""FlexAttention over the pool in place: what rows see, which blocks tiles read, and that steps compile nothing new.

On CPU it runs uncompiled and so computes every slot of the pool through the mask; the lists of blocks, which only
compiled kernels follow, are compared with the mask, and compiled for CPU once (`slow`). CUDA: tests/gpu.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from sessions.engine import flex_attention
from sessions.engine.flex_attention import LONG, SHORT, FlexAttention, FlexPool
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.spans import spans_of
from sessions.engine.tiles import Tiles, block_positions, empty_tiles, power_of_four, tiles_of
from sessions.engine.torch_attention import TorchAttention
from tests.unit.engine.steps import Requests

CPU = torch.device("cpu")
NUM_TOKENS = (41, 18, 33, 62, 34, 150, 1, 16)
NEW = (1, 1, 33, 12, 4, 70, 1, 2)
"""Of each request: streams, drafts beside streams, chunks cold and warm, more than a long tile, a whole block."""


@pytest.fixture(autouse=True)
def _without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain operator itself, not traced anew for every call."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def pool_of(layout: LayerLayout, block_size: int = 16, num_blocks: int = 40, *, compiled: bool = False) -> FlexPool:
    cache = KVCache([layout], num_blocks, block_size, torch.float32, CPU, tokens_first=True)
    return FlexPool(cache, num_blocks * block_size, compiled=compiled)


def attend(pool: FlexPool, requests: Requests, entries: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    return requests.step(lambda batch: FlexAttention(pool, batch), entries)


@pytest.mark.parametrize("window", [None, 1, 9, 16, 40])
@pytest.mark.parametrize(("heads", "block_size"), [((4, 4, 16, 16), 16), ((9, 3, 16, 24), 8), ((8, 1, 24, 16), 32)])
def test_it_is_plain_attention(window: int | None, heads: tuple[int, int, int, int], block_size: int) -> None:
    pool = pool_of(LayerLayout(*heads, 0.2, window), block_size, num_blocks=400 // block_size + 20)
    requests = Requests(pool.cache, NUM_TOKENS)
    for entries in requests.halves(NEW):
        torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 20])
def test_requests_that_share_blocks_each_see_their_own(window: int | None) -> None:
    pool = pool_of(LayerLayout(4, 2, 16, 16, 0.2, window))
    requests = Requests(pool.cache, (70, 66, 49), shared=3)
    for entries in requests.halves((1, 2, 1)):
        torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)


def test_a_block_whose_last_owner_broke_is_as_good_as_new() -> None:
    """Freed blocks come back elsewhere in another table, with what is in them; masked is not unread."""
    pool = pool_of(LayerLayout(4, 2, 16, 16, 0.2), num_blocks=8)
    broken = Requests(pool.cache, (64,))
    for part in broken.parts[0][1:]:
        part[::2], part[1::2] = torch.nan, torch.inf
    attend(pool, broken, [(0, 0, 64)])
    requests = Requests(pool.cache, (21, 37), seed=2)
    attend(pool, broken, [(0, 0, 64)])
    assert not set(np.concatenate(requests.tables)).isdisjoint(broken.tables[0])
    for entries in requests.halves((1, 6)):
        torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)


def test_a_broken_token_shows_to_those_who_see_it() -> None:
    pool = pool_of(LayerLayout(4, 2, 16, 16, 0.2))
    requests = Requests(pool.cache, (30,))
    requests.parts[0][1][10] = torch.nan
    out = attend(pool, requests, [(0, 0, 30)])
    assert out[10:].isnan().all() and not out[:10].isnan().any()


def tiles_and_mask(requests: Requests, size: int, window: int | None) -> Iterator[tuple[Tiles, torch.Tensor]]:
    """Tiles of both steps, and [N, R, slots] which slots their rows see."""
    cache = requests.cache
    for entries in requests.halves(NEW):
        spans = spans_of(requests.batch(entries), cache.block_size)
        tiles, _ = tiles_of(spans, np.arange(len(entries)), size, 30, CPU)
        sees = tiles.sees(block_positions(spans, cache.num_blocks, CPU), cache.block_size, window)
        num_tiles = torch.arange(len(tiles.counts))[:, None, None]
        slots = torch.arange(cache.num_blocks * cache.block_size)
        yield tiles, sees(num_tiles, torch.tensor(0), torch.arange(size)[:, None], slots)


@pytest.mark.parametrize("tell_full", [False, True])
@pytest.mark.parametrize("window", [None, 1, 9, 16, 17, 100])
@pytest.mark.parametrize("size", [SHORT, LONG])
def test_the_blocks_of_a_tile_are_those_its_rows_see(size: int, window: int | None, tell_full: bool) -> None:
    cache = pool_of(LayerLayout(4, 2, 16, 16, 0.2)).cache
    for tiles, seen in tiles_and_mask(Requests(cache, NUM_TOKENS), size, window):
        blocks = tiles.blocks(cache.block_size, window, tell_full=tell_full)
        by_block = seen.view(*seen.shape[:2], cache.num_blocks, cache.block_size)
        for tile, count in enumerate(tiles.counts.tolist()):
            used = by_block[tile, :count]
            partial = blocks.partial[tile, : blocks.num_partial[tile]].tolist()
            full = blocks.full[tile, : blocks.num_full[tile]].tolist()
            some = {block for block in range(cache.num_blocks) if used[:, block].any()}
            every = {block for block in some if used[:, block].all()}
            assert len(set(partial)) == len(partial) and len(set(full)) == len(full)
            assert set(full) == (every if tell_full else set())
            assert set(partial) == some - set(full)


def test_tables_are_no_wider_than_what_can_be_in_them() -> None:
    """A request has each block once; a context of a million tokens over a small pool is no reason for wide tables."""
    cache = pool_of(LayerLayout(4, 2, 16, 16, 0.2), num_blocks=8).cache
    assert FlexPool(cache, 33, compiled=False).width == 3
    pool = FlexPool(cache, 2**20, compiled=False)
    assert pool.width == 8
    requests = Requests(cache, (128,))
    for entries in requests.halves((1,)):
        torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)


def test_rows_in_use_stand_in_their_tiles_in_order() -> None:
    requests = Requests(pool_of(LayerLayout(4, 2, 16, 16, 0.2)).cache, NUM_TOKENS)
    _, entries = requests.halves(NEW)
    spans = spans_of(requests.batch(entries), 16)
    tiles, rows = tiles_of(spans, np.arange(len(entries)), LONG, 30, CPU)
    assert rows[rows >= 0].tolist() == list(range(sum(NEW)))
    assert len(tiles.counts) == power_of_four(len(entries) + 1) == 16
    assert int(tiles.counts.sum()) == sum(NEW) and (tiles.table[len(entries) + 1 :] == -1).all()
    assert tiles.first.tolist()[:4] == [40, 17, 0, 0], "the streams, then the first chunk"


def test_where_a_batch_stands_in_the_pool() -> None:
    """The picture in spans.py."""
    requests = Requests(pool_of(LayerLayout(1, 1, 16, 16, 1), 4).cache, (6, 6))
    requests.tables = [np.array([7, 2, 5], np.int32), np.array([3, 9], np.int32)]
    spans = spans_of(requests.batch([(0, 5, 6), (1, 2, 6)]), 4)
    assert spans.table.tolist() == [[7, 2], [3, 9]]
    assert spans.slots.tolist() == [9, 14, 15, 36, 37]


def test_an_empty_tile_reads_nothing() -> None:
    blocks = empty_tiles(4, LONG, 30, CPU).blocks(16, None, tell_full=True)
    assert not blocks.num_partial.any() and not blocks.num_full.any()


class CountedCompiler:
    """Traces as on CUDA, compiles to nothing: what counts is how often torch asks."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        self.count += 1
        return graph


def test_no_step_compiles_what_was_not_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    monkeypatch.setattr(flex_attention, "WARM", (1, 4))
    torch._dynamo.reset()
    compiler, pool = CountedCompiler(), pool_of(LayerLayout(3, 1, 16, 16, 0.2, 20))
    pool._flex = torch.compile(torch_flex.flex_attention, fullgraph=True, dynamic=False, backend=compiler)
    with torch.inference_mode():
        before = [part.clone() for part in (*pool.cache.keys, *pool.cache.values)]
        pool.warm()
        assert compiler.count == 4, "two kinds of tile, one and four of them"
        assert all(map(torch.equal, before, (*pool.cache.keys, *pool.cache.values)))
        requests = Requests(pool.cache, (41, 100, 33, 62))
        for entries in (*requests.halves((1, 1, 33, 4)), *requests.halves((1, 90, 4, 1))):
            torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)
    assert compiler.count == 4
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_for_cpu_it_is_plain_attention() -> None:
    """The lists of blocks count here: the CPU's compiled kernel reads no other block. Two kernels, of 15 s each."""
    torch._dynamo.reset()
    pool = pool_of(LayerLayout(6, 2, 32, 32, 0.2, 40), compiled=True)
    requests = Requests(pool.cache, NUM_TOKENS)
    before, entries = requests.halves(NEW)
    with torch.inference_mode():
        requests.step(lambda batch: TorchAttention(batch, pool.cache), before)
        torch.testing.assert_close(attend(pool, requests, entries), requests.wanted(entries), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
