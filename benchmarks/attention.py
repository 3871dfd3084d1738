"""Attention over the block pool, all layers of a step: kernels that read blocks in place beside torch's gather."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import click
import numpy as np
import torch

from benchmarks.model import Shapes, describe_torch, find_kernels, model_folder, read_shapes
from benchmarks.report import Comparison, Figure, interleaved, measuring, milliseconds, number, timed
from sessions.engine.attention import Receiver
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout, bytes_per_token
from sessions.engine.native.attention import NativeAttention, NativePool
from sessions.engine.torch_attention import TorchAttention

BLOCK_SIZE: Final = 16
CHUNK: Final = 256
"""Tokens of a prefill step: the default token budget."""
SMALL_CHUNKS: Final = (8, 16, 64)
"""Tokens of a prompt that is computed beside streams (`engine/pace.py`)."""
BATCHES: Final = (1, 4, 8, 16)
CONTEXTS: Final = (128, 1024, 4096)
QUICK_BATCHES: Final = (1, 8)
QUICK_CONTEXTS: Final = (128, 1024)


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` requests compute `num_tokens` each after `context` tokens that are in the pool."""

    batch: int
    context: int
    num_tokens: int

    @property
    def num_blocks(self) -> int:
        return -(-(self.context + self.num_tokens) // BLOCK_SIZE)

    @property
    def name(self) -> str:
        if self.num_tokens == 1:
            return f"decode, batch {self.batch}, context {self.context}"
        return f"chunk of {self.num_tokens} after {self.context}"

    @property
    def unit(self) -> str:
        return "GB/s" if self.num_tokens == 1 else "GFLOP/s"

    def work(self, cache: KVCache) -> int:
        """Bytes of K and V read (decoding), or multiply-adds counted as two (a chunk), over all layers."""
        seen = sum(range(self.context + 1, self.context + self.num_tokens + 1)) * self.batch
        if self.num_tokens == 1:
            return seen * bytes_per_token(cache.layers, cache.dtype)
        return 2 * seen * sum(kv.num_heads * (kv.head_dim + kv.value_head_dim) for kv in cache.layers)


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose shapes; K and V are random.")
@click.option(
    "--kv-dtype",
    "kv_dtypes",
    multiple=True,
    type=click.Choice(["float32", "float16", "bfloat16", "int8"]),
    default=("float16", "int8"),
    show_default=True,
    help="What the kernels read; torch reads the first.",
)
@click.option("--repeats", default=9, show_default=True)
@click.option("--quick", is_flag=True, help="Few cases, few repeats.")
@torch.inference_mode()
def attention(model: str, kv_dtypes: Sequence[str], repeats: int, quick: bool) -> None:
    """Attention by batch and context: native kernels and torch."""
    shapes = read_shapes(model_folder(model))
    batches, contexts = (QUICK_BATCHES, QUICK_CONTEXTS) if quick else (BATCHES, CONTEXTS)
    repeats = min(repeats, 3) if quick else repeats
    cases = [Case(batch, context, 1) for batch in batches for context in contexts]
    cases += [Case(1, context, CHUNK) for context in (0, *contexts[1:])]
    cases += [Case(1, context, num_tokens) for context in contexts[1:] for num_tokens in SMALL_CHUNKS]
    with measuring(f"attention: {shapes.num_layers} layers of {model}, {describe_torch()}"):
        kernels = find_kernels()
        if kernels is None:
            raise click.ClickException("Without the kernels there is nothing to compare.")
        print(f"   torch reads memory at {read_bandwidth():.1f} GB/s (sum of 1 GiB fp32)")
        num_blocks = max(case.batch * case.num_blocks for case in cases)
        caches = {name: random_cache(shapes, getattr(torch, name), num_blocks) for name in kv_dtypes}
        length = BLOCK_SIZE * max(case.num_blocks for case in cases)
        pools = {name: NativePool(kernels, cache, length) for name, cache in caches.items()}
        compare(cases, caches[kv_dtypes[0]], pools, repeats).print()


def compare(cases: Sequence[Case], reference: KVCache, pools: Mapping[str, NativePool], repeats: int) -> Comparison:
    """Every case over the reference by torch, and over every pool by its kernels."""
    plain = f"torch {str(reference.dtype).removeprefix('torch.')}"
    comparison = Comparison([plain, *pools])
    for case in cases:
        step = Step(case, reference)
        functions = {name: partial(run_native, step, pool) for name, pool in pools.items()}
        seconds = interleaved({plain: partial(run_torch, step, reference), **functions}, repeats)
        rates = (number(case.work(pool.cache) / median(seconds[name]) / 1e9) for name, pool in pools.items())
        note = f"{', '.join(rates)} {case.unit}"
        for name, samples in seconds.items():
            comparison.add(Figure(case.name, "ms"), name, milliseconds(samples), note)
    return comparison


def random_cache(shapes: Shapes, dtype: torch.dtype, num_blocks: int) -> KVCache:
    """A pool full of noise, the same in all layers: each has its own memory, which is what counts."""
    layout = LayerLayout(shapes.num_heads, shapes.num_kv_heads, shapes.head_dim, shapes.head_dim, shapes.head_dim**-0.5)
    cache = KVCache([layout] * shapes.num_layers, num_blocks, BLOCK_SIZE, dtype, torch.device("cpu"))
    slots = torch.arange(num_blocks * BLOCK_SIZE)
    key, value = torch.randn(2, len(slots), shapes.num_kv_heads, shapes.head_dim)
    for layer in range(shapes.num_layers):
        cache.write(layer, slots, key, value)
    return cache


def read_bandwidth() -> float:
    """GB/s of a plain sequential read, best of five: what the kernels' GB/s are to be judged by."""
    memory = torch.ones(2**28)
    return memory.nbytes / 1e9 / min(timed(memory.sum) for _ in range(5))


class Step:
    """One step's batch over shuffled blocks, with its queries, keys and values."""

    def __init__(self, case: Case, cache: KVCache) -> None:
        self._layers = cache.layers
        layout = cache.layers[0]
        num_rows = case.batch * case.num_tokens
        self._query = torch.randn(num_rows, layout.num_heads, layout.head_dim)
        self._key = torch.randn(num_rows, layout.num_kv_heads, layout.head_dim)
        self._value = torch.randn(num_rows, layout.num_kv_heads, layout.value_head_dim)
        self.batch = make_batch(case, cache.num_blocks)

    def run(self, receiver: Receiver) -> None:
        for layer, layout in enumerate(self._layers):
            receiver.attend(layer, self._query, self._key, self._value, layout.scaling, layout.sliding_window)


def run_torch(step: Step, cache: KVCache) -> None:
    step.run(TorchAttention(step.batch, cache))


def run_native(step: Step, pool: NativePool) -> None:
    step.run(NativeAttention(pool, step.batch))


def make_batch(case: Case, num_blocks: int) -> Batch:
    shuffled = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).to(torch.int32).numpy()
    tables = tuple(
        np.ascontiguousarray(shuffled[index * case.num_blocks : (index + 1) * case.num_blocks])
        for index in range(case.batch)
    )
    records = [
        (table.ctypes.data, index * case.num_tokens, case.context, case.num_tokens, 0)
        for index, table in enumerate(tables)
    ]
    nothing = torch.zeros(1, case.batch * case.num_tokens, dtype=torch.int64)
    return Batch(nothing, nothing, nothing[0], np.array(records, SEQUENCE), tables)
