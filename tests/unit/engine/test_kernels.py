"""The C++ kernels against plain torch, and against themselves: a row never depends on the rest of the step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.native import build as native_build
from sessions.engine.native.attention import NativeAttention, NativePool
from sessions.engine.native.kernels import Kernels, load_kernels
from sessions.engine.torch_attention import TorchAttention


@dataclass
class Case:
    """lengths: (start, num_tokens) of each entry; all of a request's tokens have K and V, so any split can be tried."""

    layout: LayerLayout
    lengths: Sequence[tuple[int, int]]
    block_size: int = 16
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(len(self.lengths) + self.layout.head_dim)
        totals = [start + count for start, count in self.lengths]
        needed = [-(-total // self.block_size) for total in totals]
        ids = torch.randperm(sum(needed) + 3, generator=self.generator).to(torch.int32).numpy()
        self.tables = tuple(np.ascontiguousarray(part) for part in np.split(ids[: sum(needed)], np.cumsum(needed)[:-1]))
        self.cache = KVCache([self.layout], len(ids), self.block_size, self.dtype, torch.device("cpu"))
        kv = self.layout
        self.query = [self.random(total, kv.num_heads, kv.head_dim) for total in totals]
        self.key = [self.random(total, kv.num_kv_heads, kv.head_dim) for total in totals]
        self.value = [self.random(total, kv.num_kv_heads, kv.value_head_dim) for total in totals]

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def batch(self, entries: Sequence[tuple[int, int, int]]) -> tuple[Batch, list[torch.Tensor]]:
        """entries: (request, start, num_tokens), one-token ones first -> batch, and its query, key, value."""
        row, records = 0, []
        for request, start, count in entries:
            records.append((self.tables[request].ctypes.data, row, start, count, 0))
            row += count
        parts = [
            torch.cat([source[r][start : start + count] for r, start, count in entries])
            for source in (self.query, self.key, self.value)
        ]
        nothing = torch.zeros(1, row, dtype=torch.int64)
        tables = tuple(self.tables[request] for request, _, _ in entries)
        return Batch(nothing, nothing, nothing[0], np.array(records, SEQUENCE), tables), parts

    def fill(self) -> None:
        """Everything before each entry's start is in the pool."""
        for request, (start, _) in enumerate(self.lengths):
            if start:
                batch, (q, k, v) = self.batch([(request, 0, start)])
                TorchAttention(batch, self.cache).attend(0, q, k, v, 1.0, None)

    def native(self, kernels: Kernels, entries: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        batch, (q, k, v) = self.batch(entries)
        pool = NativePool(kernels, self.cache, 8192)
        return NativeAttention(pool, batch).attend(0, q, k, v, self.layout.scaling, self.layout.sliding_window)

    def torch(self, entries: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        batch, (q, k, v) = self.batch(entries)
        attention = TorchAttention(batch, self.cache)
        return attention.attend(0, q, k, v, self.layout.scaling, self.layout.sliding_window)

    def entries(self) -> list[tuple[int, int, int]]:
        entries = [(request, start, count) for request, (start, count) in enumerate(self.lengths)]
        return sorted(entries, key=lambda entry: entry[2] > 1)


def layout(heads: int, kv_heads: int, head_dim: int, value_dim: int = 0, window: int | None = None) -> LayerLayout:
    return LayerLayout(heads, kv_heads, head_dim, value_dim or head_dim, head_dim**-0.5, window)


LENGTHS = [(0, 1), (37, 1), (1100, 1), (0, 50), (30, 23), (600, 130)]


@pytest.mark.parametrize(
    "case",
    [
        Case(layout(9, 3, 64), LENGTHS),
        Case(layout(9, 3, 64), [(700, 1)]),
        Case(layout(4, 4, 8), LENGTHS, block_size=8),
        Case(layout(4, 1, 80, 96), LENGTHS, block_size=24),
        Case(layout(8, 2, 20, 8), LENGTHS, block_size=32),
        Case(layout(48, 1, 256), [(5, 1), (100, 9)]),
        Case(layout(6, 2, 128, window=7), LENGTHS),
        Case(layout(6, 2, 16, window=600), [*LENGTHS, (1400, 1), (1300, 140)]),
        Case(layout(9, 3, 64), LENGTHS, dtype=torch.float16),
        Case(layout(9, 3, 64), LENGTHS, dtype=torch.bfloat16),
        Case(layout(9, 3, 64), LENGTHS, dtype=torch.int8),
        Case(layout(4, 1, 80, 96), LENGTHS, block_size=24, dtype=torch.int8),
        Case(layout(8, 2, 20, 8, window=7), LENGTHS, block_size=8, dtype=torch.int8),
    ],
    ids=lambda case: f"{case.layout.num_heads}x{case.layout.head_dim}-{case.block_size}-{case.layout.sliding_window}",
)
def test_attention_and_what_it_writes_equal_torch(kernels: Kernels, case: Case) -> None:
    twin = replace(case)
    case.fill()
    twin.fill()
    want, got = case.torch(case.entries()), twin.native(kernels, twin.entries())
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-4)
    assert_same_pool(twin.cache, case.cache)


def assert_same_pool(one: KVCache, other: KVCache) -> None:
    """Bit for bit, scales too."""
    for parts in ("keys", "values", "key_scales", "value_scales"):
        for mine, theirs in zip(getattr(one, parts), getattr(other, parts), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("window", [None, 300])
def test_a_row_is_the_same_bit_for_bit_alone_in_chunks_in_a_batch_and_on_any_threads(
    kernels: Kernels, window: int | None, dtype: torch.dtype
) -> None:
    case = Case(layout(6, 2, 64, window=window), [(0, 1200), (0, 700), (0, 3)], dtype=dtype)
    whole = [case.native(kernels, [(request, 0, count)]) for request, (_, count) in enumerate(case.lengths)]
    together = case.native(kernels, [(0, 1199, 1), (1, 640, 60), (2, 0, 3)])
    assert torch.equal(together, torch.cat([whole[0][1199:], whole[1][640:], whole[2]]))
    for start, count in [(0, 5), (5, 123), (128, 400), (528, 671), (1199, 1)]:
        assert torch.equal(case.native(kernels, [(0, start, count)]), whole[0][start : start + count])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(case.native(kernels, [(0, 1199, 1)]), whole[0][1199:])
        torch.set_num_threads(7)
        assert torch.equal(case.native(kernels, [(0, 1100, 100)]), whole[0][1100:])
    finally:
        torch.set_num_threads(threads)


SHAPES = [
    (layout(3, 3, 32), 16),
    (layout(9, 3, 64), 16),
    (layout(4, 1, 80, 96), 16),
    (layout(7, 1, 128, window=100), 32),
    (layout(4, 2, 20, 8), 48),
    (layout(2, 1, 256), 16),
    (layout(6, 2, 64, window=7), 8),
    (layout(9, 3, 64), 24),
]


@pytest.mark.parametrize("heads", [(9, 3), (10, 2), (5, 1)])
@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_many_sequences_whose_heads_are_one_task_give_the_bits_of_each_alone(
    kernels: Kernels, heads: tuple[int, int], window: int | None, threads: int
) -> None:
    lengths = [(0, 1), (16, 1), (1700, 1), (511, 1), (640, 1), (33, 1), (700, 1), (90, 2), (530, 9), (60, 25)]
    case = Case(layout(*heads, 64, window=window), lengths, dtype=torch.float16)
    case.fill()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([case.native(kernels, [entry]) for entry in case.entries()])
        torch.set_num_threads(threads)
        assert torch.equal(case.native(kernels, case.entries()), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(
    ("kv", "block_size"), SHAPES, ids=lambda of: f"{of.num_heads}x{of.head_dim}" if isinstance(of, LayerLayout) else of
)
def test_rows_of_every_shape_and_dtype_are_the_same_bit_for_bit_however_many_there_are(
    kernels: Kernels, kv: LayerLayout, block_size: int, dtype: torch.dtype
) -> None:
    """One row, a few, a task's worth and more; ends on and beside the borders of vectors, tiles and partitions."""
    case = Case(kv, [(0, 590), (0, 45)], block_size=block_size, dtype=dtype)
    whole = [case.native(kernels, [(request, 0, count)]) for request, (_, count) in enumerate(case.lengths)]
    for start, count in [
        (0, 1),
        (15, 1),
        (16, 2),
        (63, 5),
        (64, 1),
        (127, 17),
        (300, 212),
        (511, 1),
        (512, 1),
        (560, 30),
    ]:
        alone = case.native(kernels, [(0, start, count)])
        assert torch.equal(alone, whole[0][start : start + count]), f"{count} from {start}"
    together = case.native(kernels, [(0, 589, 1), (1, 13, 32)])
    assert torch.equal(together, torch.cat([whole[0][589:], whole[1][13:]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_scores_that_climb_far_and_numbers_next_to_nothing(kernels: Kernels, dtype: torch.dtype) -> None:
    """The peak moves late and by much, weights underflow, K and V are as small as a half can be: torch agrees."""
    case = Case(layout(6, 2, 64), [(300, 40), (0, 90)], dtype=dtype)
    case.key[0] *= torch.linspace(0.1, 12, 340)[:, None, None]
    case.key[1] *= torch.linspace(30, 0.1, 90)[:, None, None]
    case.key[1][40] = case.value[1][50] = 3e-7
    twin = replace(case)
    twin.key, twin.value = case.key, case.value
    case.fill()
    twin.fill()
    want, got = case.torch(case.entries()), twin.native(kernels, twin.entries())
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("window", [None, 600])
def test_tasks_cut_into_parts_give_the_same_bits_and_keep_to_their_scratch(
    kernels: Kernels, threads: int, window: int | None
) -> None:
    """Steps of every mixture: prompts long and short beside streams long and short. 4096.5 stands past the scratch."""
    totals = [2100, 1500, 1200, 40, 40, 40, 700]
    case = Case(layout(6, 2, 16, window=window), [(0, total) for total in totals])
    whole = [case.native(kernels, [(request, 0, total)]) for request, total in enumerate(totals)]
    choose = np.random.default_rng(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pool = NativePool(kernels, case.cache, max(totals))
    finally:
        torch.set_num_threads(before)
    sizes = pool.scratch.numel(), pool.parts_done.numel()
    pool.scratch = torch.full((2 * sizes[0],), 4096.5)
    pool.parts_done = torch.full((2 * sizes[1],), -7, dtype=torch.int32)
    for _ in range(25):
        entries = []
        for request in choose.permutation(len(totals))[: choose.integers(1, len(totals) + 1)].tolist():
            count = min(int(choose.choice([1, 1, 5, 16, 40, 200])), totals[request])
            entries.append((request, int(choose.integers(0, totals[request] - count + 1)), count))
        entries.sort(key=lambda entry: entry[2] > 1)
        batch, (q, k, v) = case.batch(entries)
        got = NativeAttention(pool, batch).attend(0, q, k, v, case.layout.scaling, window)
        assert torch.equal(got, torch.cat([whole[request][start : start + n] for request, start, n in entries]))
    assert pool.scratch[sizes[0] :].eq(4096.5).all()
    assert pool.parts_done[sizes[1] :].eq(-7).all()
    assert pool.scratch[: sizes[0]].ne(4096.5).any(), "no task was cut"


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_garbage_in_slots_nobody_wrote_never_shows(kernels: Kernels, dtype: torch.dtype) -> None:
    """A recycled block holds a stranger's numbers past the last token; NaN there is the worst of them."""
    case = Case(layout(6, 2, 64), [(40, 1), (40, 6)], dtype=dtype)
    case.fill()
    want = case.native(kernels, case.entries())
    keys, values = case.cache.keys[0], case.cache.values[0]
    for request, length in enumerate((41, 46)):
        block, used = case.tables[request][-1], length % 16
        if dtype == torch.int8:
            keys[block, :, :, used:] = values[block, :, used:] = 127
            case.cache.key_scales[0][block, :, used:] = case.cache.value_scales[0][block, :, used:] = torch.nan
        else:
            keys[block, :, :, used:] = values[block, :, used:] = torch.nan
    assert torch.equal(case.native(kernels, case.entries()), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_what_a_token_leaves_in_the_pool_is_the_same_however_the_tokens_are_cut(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    case = Case(layout(6, 2, 64), [(0, 50), (0, 31)], dtype=dtype)
    case.key[1] *= 100  # a loud neighbour
    case.native(kernels, [(0, 0, 50), (1, 0, 31)])
    alone = replace(case)
    alone.key[1] *= 100
    for request, start, count in [(1, 0, 17), (0, 0, 1), (0, 1, 23), (1, 17, 14), (0, 24, 26)]:
        alone.native(kernels, [(request, start, count)])
    assert_same_pool(alone.cache, case.cache)


def test_numbers_that_int8_cannot_hold(kernels: Kernels) -> None:
    """Zeros and what is next to nothing become zeros; what is not finite shows when it is read, as in any dtype."""
    case = Case(layout(2, 1, 8), [(0, 6)], block_size=8, dtype=torch.int8)
    case.key[0][0], case.key[0][1], case.value[0][1] = 0, 1e-38, -1e-31
    case.key[0][2, 0, 3], case.value[0][3, 0, 7] = torch.inf, torch.nan
    case.value[0][4] = 3e38
    twin = replace(case)
    twin.key, twin.value = case.key, case.value
    case.torch(case.entries())
    out = twin.native(kernels, twin.entries())
    for parts in ("keys", "values", "key_scales", "value_scales"):
        torch.testing.assert_close(
            getattr(twin.cache, parts)[0], getattr(case.cache, parts)[0], rtol=0, atol=0, equal_nan=True
        )
    key, value = twin.cache.read(0, twin.tables[0][0].item() * 8 + torch.arange(6))
    assert not key[:2].any() and not value[1].any()
    assert key[2].isnan().all() and value[3].isnan().all()
    torch.testing.assert_close(value[4], case.value[0][4])
    assert out[2:].isnan().all(), "a broken token shows to itself and to those after it"


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_add_rms_norm(kernels: Kernels, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, delta = torch.randn(2, rows, 580, generator=generator)
    weight = torch.rand(580, generator=generator)
    want = torch.nn.functional.rms_norm(x + delta, (580,), weight, 1e-5)
    plain = torch.nn.functional.rms_norm(x, (580,), weight, 1e-5)
    out = torch.empty_like(x)
    kernels.add_rms_norm(x, None, weight, out, 1e-5)
    torch.testing.assert_close(out, plain)
    expected_sum = x + delta
    kernels.add_rms_norm(x, delta, weight, out, 1e-5)
    torch.testing.assert_close(out, want)
    assert torch.equal(x, expected_sum)


@pytest.mark.parametrize("rows", [1, 40])
def test_silu_mul(kernels: Kernels, rows: int) -> None:
    gate_up = torch.randn(rows, 2 * 309, generator=torch.Generator().manual_seed(1)) * 30
    gate_up[0, :4] = torch.tensor([0.0, -200.0, 200.0, -88.0])
    out = torch.empty(rows, 309)
    kernels.silu_mul(gate_up, out)
    torch.testing.assert_close(out, torch.nn.functional.silu(gate_up[:, :309]) * gate_up[:, 309:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_rope_rotates_q_and_k_and_leaves_v(kernels: Kernels, normed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    qkv = torch.randn(5, (4 + 2 + 2) * 16, generator=generator)
    angle = torch.randn(5, 6, generator=generator)
    cosine, sine = (torch.cat([f(angle), f(angle)], dim=-1) for f in (torch.cos, torch.sin))
    weights = torch.rand(16, generator=generator), torch.rand(16, generator=generator)
    heads = qkv.view(5, 8, 16).clone()
    if normed:
        heads[:, :4] = torch.nn.functional.rms_norm(heads[:, :4], (16,), weights[0], 1e-6)
        heads[:, 4:6] = torch.nn.functional.rms_norm(heads[:, 4:6], (16,), weights[1], 1e-6)
    rotated, rest = heads[:, :6, :12], heads[:, :6, 12:]
    half = torch.cat([-rotated[..., 6:], rotated[..., :6]], dim=-1)
    rotated = rotated * cosine[:, None] + half * sine[:, None]
    want = torch.cat([torch.cat([rotated, rest], dim=-1), heads[:, 6:]], dim=1).reshape(5, -1)
    kernels.rope(qkv, cosine, sine, (*weights, 1e-6) if normed else None, (4, 2, 16))
    torch.testing.assert_close(qkv, want, atol=1e-6, rtol=1e-5)


def test_limits(kernels: Kernels) -> None:
    def pool(kv: LayerLayout, block_size: int = 16) -> KVCache:
        return KVCache([kv], 2, block_size, torch.float32, torch.device("cpu"))

    assert kernels.can_attend(pool(layout(9, 3, 64)))
    assert not kernels.can_attend(pool(layout(9, 3, 64), block_size=4))
    assert not kernels.can_attend(pool(layout(9, 3, 64, 20)))
    assert not kernels.can_attend(pool(layout(9, 3, 512)))
    assert kernels.can_attend(pool(layout(kernels.max_rows, 1, 64)))
    assert not kernels.can_attend(pool(layout(kernels.max_rows + 1, 1, 64)))


def test_a_build_is_kept_and_found_again(tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native_build.build(tmp_path)
    written = path.stat().st_mtime_ns
    assert native_build.build(tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-DOTHER"))
    assert native_build.build(tmp_path) != path


def test_no_compiler_is_a_reason_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert load_kernels(tmp_path) == (None, "there is no C++ compiler (c++, g++ or clang++) on this machine")


def test_a_compiler_that_fails_is_a_reason_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\ncase "$*" in *-dM*) exit 0;; esac\necho no such target >&2\nexit 1\n')
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    assert load_kernels(tmp_path) == (None, "the compiler failed: no such target")
    assert list((tmp_path / "native").iterdir()) == []
