"""Linears of integers: what a GGUF holds is found again exactly, and a row never depends on the rest of the step."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch.nn.functional import linear

from sessions.engine.linear import Linear
from sessions.engine.memory import ARENA_BYTES, CACHE_LINE, Arena
from sessions.engine.native.kernels import Kernels

SHAPES = [(1, 576, 960), (5, 32, 17), (6, 32, 16), (13, 1536, 48), (21, 96, 17), (300, 64, 40), (700, 320, 33)]
"""(rows, inputs, outputs): single rows, groups and tiles that are not full, odd numbers of blocks and of panels."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_stored(weight: torch.Tensor, kind: GGMLQuantizationType) -> torch.Tensor:
    """What a GGUF of that kind gives back: by the quantiser and the reader of llama.cpp's own package."""
    return torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind).astype(np.float32))


def with_outlier(rows: int, inputs: int) -> torch.Tensor:
    x = draw(rows, inputs, seed=rows) * torch.rand(rows, 1, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 100.0  # as real activations have
    return x


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(GGMLQuantizationType.Q4_0, 4), (GGMLQuantizationType.Q4_1, 4), (GGMLQuantizationType.Q8_0, 8)],
    ids=lambda value: str(getattr(value, "name", value)),
)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_integers_of_a_file_are_found_again(
    kernels: Kernels, kind: GGMLQuantizationType, bits: int, rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    weight = as_stored(draw(outputs, inputs), kind)
    bias = draw(outputs, seed=2) if with_bias else None
    packed = kernels.pack_linear(weight, bias, bits)
    assert packed is not None
    assert len(packed.packed) <= -(-outputs // 16) * 16 * inputs * (bits + 1) // 8
    x = with_outlier(rows, inputs)
    got = kernels.linear(x, packed)
    exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert (got - exact).norm() / exact.norm() < 2e-4, "only the rounding of activations may differ"
    assert torch.equal(torch.cat([kernels.linear(row[None], packed) for row in x]), got)


def test_no_rows_are_no_rows(kernels: Kernels) -> None:
    packed = kernels.pack_linear(as_stored(draw(16, 32), GGMLQuantizationType.Q4_1), None, 4)
    assert packed is not None
    assert kernels.linear(torch.empty(0, 32), packed).shape == (0, 16)


def test_the_columns_of_the_identity_are_the_weights(kernels: Kernels) -> None:
    weight = as_stored(draw(24, 96), GGMLQuantizationType.Q4_1)
    packed = kernels.pack_linear(weight, None, 4)
    assert packed is not None
    got = kernels.linear(torch.eye(96), packed).T
    torch.testing.assert_close(got, weight, rtol=3e-7, atol=3e-7)


def test_an_arena_gives_memory_that_nobody_else_has() -> None:
    arena = Arena()
    sizes = [1, 63, 64, 65, 3 << 20, ARENA_BYTES - 300, ARENA_BYTES + 1, 7] * 2
    given = [torch.full((size,), index, dtype=torch.uint8) for index, size in enumerate(sizes)]
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(arena.keep, given))
    assert all(torch.equal(one, other) for one, other in zip(kept, given, strict=True))
    assert all(one.data_ptr() % CACHE_LINE == 0 for one in kept)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_on_no_grid_are_not_taken(kernels: Kernels, bits: int) -> None:
    kind = GGMLQuantizationType.Q4_1 if bits == 4 else GGMLQuantizationType.Q8_0
    weight = as_stored(draw(40, 64), kind)
    assert kernels.pack_linear(weight, None, bits) is not None
    weight[37, 41] = torch.nextafter(weight[37, 41], torch.tensor(9.0))
    assert kernels.pack_linear(weight, None, bits) is None
    assert kernels.pack_linear(torch.full((1, 32), torch.nan), None, bits) is None


def test_blocks_that_use_few_steps_or_none(kernels: Kernels) -> None:
    """All equal, all zero, two values, a grid whose ends are not used: as an imatrix or a merge may leave them."""
    step = torch.tensor(0.0123).half().float()
    rows = torch.stack([
        torch.full((32,), 0.25), torch.zeros(32), torch.arange(32) % 2 * step, torch.arange(32) % 11 * step - 1,
    ])  # fmt: skip
    packed = kernels.pack_linear(rows, None, 4)
    assert packed is not None
    torch.testing.assert_close(kernels.linear(torch.eye(32), packed).T, rows, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("used", [(0, 15), (1, 15), (2, 15), (1, 14), (8, 15), (0, 8), (5, 9)])
@pytest.mark.parametrize("sign", [1, -1])
def test_q4_0_whose_ends_are_not_used(kernels: Kernels, used: tuple[int, int], sign: int) -> None:
    """llama.cpp's quantiser uses integer 0; one that weighs errors (imatrix) need not."""
    generator = torch.Generator().manual_seed(used[0])
    step = sign * torch.rand(40, 1, generator=generator).half().float()
    q = torch.randint(used[0], used[1] + 1, (40, 32), generator=generator).float()
    q[:, 0], q[:, 1] = used
    weight = step * (q - 8)
    packed = kernels.pack_linear(weight, None, 4)
    assert packed is not None
    torch.testing.assert_close(kernels.linear(torch.eye(32), packed).T, weight, rtol=1e-6, atol=1e-6)


def test_steps_whose_offset_is_beyond_half_are_not_taken(kernels: Kernels) -> None:
    weight = torch.zeros(1, 32)
    weight[0, :3] = torch.tensor([-8.0, 7.0, 3.0]) * 16384
    assert kernels.pack_linear(weight, None, 4) is None


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, 1e9])
def test_int8_refuses_what_it_cannot_hold(kernels: Kernels, broken: float) -> None:
    weight = draw(20, 64)
    weight[3, 40] = broken
    assert kernels.pack_linear(weight, None, 8, rounds=True) is None


def test_int8_cuts_nothing_off_weights_that_are_all_but_zero(kernels: Kernels) -> None:
    weight = draw(20, 64) * 2e-6
    packed = kernels.pack_linear(weight, None, 8, rounds=True)
    assert packed is not None
    got = kernels.linear(torch.eye(64), packed).T
    torch.testing.assert_close(got, weight, rtol=0, atol=6e-8)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [*SHAPES, (5, 33, 17), (2, 8, 3)])
def test_int8_rounds_any_weights(kernels: Kernels, rows: int, inputs: int, outputs: int) -> None:
    weight, x = draw(outputs, inputs), with_outlier(rows, inputs)
    packed = kernels.pack_linear(weight, None, 8, rounds=True)
    assert packed is not None
    padded = torch.nn.functional.pad(weight, (0, -inputs % 32)).view(outputs, -1, 32)
    step = (padded.abs().amax(-1, keepdim=True) / 127).half().float()
    near = ((padded / step).round() * step).view(outputs, -1)[:, :inputs]
    exact = x.double() @ near.double().T
    got = kernels.linear(x, packed)
    assert (got - exact).norm() / exact.norm() < 2e-4
    assert torch.equal(torch.cat([kernels.linear(row[None], packed) for row in x]), got)


def test_no_sum_overflows(kernels: Kernels) -> None:
    inputs = 12_000
    packed = kernels.pack_linear(torch.ones(16, inputs), None, 8, rounds=True)
    assert packed is not None
    got = kernels.linear(torch.ones(1, inputs), packed)
    torch.testing.assert_close(got, torch.full((1, 16), float(inputs)), rtol=1e-3, atol=0)


def test_zeros(kernels: Kernels) -> None:
    packed = kernels.pack_linear(torch.zeros(3, 8), torch.tensor([1.0, 2.0, 3.0]), 4)
    assert packed is not None
    assert kernels.linear(torch.zeros(2, 8), packed).tolist() == [[1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(kernels: Kernels, broken: float) -> None:
    packed = kernels.pack_linear(draw(20, 64), None, 8, rounds=True)
    assert packed is not None
    x = draw(3, 64, seed=6)
    want = kernels.linear(x, packed)
    x[1, 40] = broken
    got = kernels.linear(x, packed)
    assert got[1].isnan().all()
    assert torch.equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_activations_of_any_size(kernels: Kernels, scale: float) -> None:
    packed = kernels.pack_linear(draw(20, 64), None, 8, rounds=True)
    assert packed is not None
    x = draw(1, 64, seed=6)
    want = kernels.linear(x, packed) * scale
    torch.testing.assert_close(kernels.linear(x * scale, packed), want, rtol=1e-3, atol=1e-35)


def test_a_thread_more_changes_no_bit(kernels: Kernels) -> None:
    packed = kernels.pack_linear(draw(500, 96), None, 8, rounds=True)
    assert packed is not None
    x, threads = draw(40, 96, seed=5), torch.get_num_threads()
    one = kernels.linear(x, packed)
    try:
        torch.set_num_threads(5)
        assert torch.equal(kernels.linear(x, packed), one)
    finally:
        torch.set_num_threads(threads)


def test_layers_side_by_side_of_which_one_is_no_grid(kernels: Kernels) -> None:
    on, off = as_stored(draw(16, 32), GGMLQuantizationType.Q4_1), draw(16, 32, seed=3)
    x = draw(4, 32, seed=4)
    for parts in ([(on, None)], [(on, None), (off, None)]):
        layer = Linear(parts)
        layer.pack("file", kernels)
        exact = torch.cat([linear(x, weight) for weight, _ in parts], dim=-1)
        torch.testing.assert_close(layer(x), exact, atol=5e-3, rtol=1e-3)


def test_sources_are_named_in_the_package() -> None:
    """A header that is not packaged is a server without kernels where it is installed."""
    from sessions.engine.native.build import HEADERS, SOURCES

    assert {path.name for path in Path(SOURCES[0]).parent.glob("*.[ch]*")} == {
        path.name for path in (*SOURCES, *HEADERS)
    }
