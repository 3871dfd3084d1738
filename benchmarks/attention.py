"""Attention over the block pool, all layers of a step: kernels that read blocks in place beside torch's gather."""

from dataclasses import dataclass
from statistics import median
from typing import Final

import click
import numpy as np
import torch

from benchmarks.model import Shapes, describe_torch, find_kernels, model_folder, read_shapes
from benchmarks.report import Comparison, Figure, interleaved, measuring, milliseconds, number, timed
from sessions.engine.attention import Receiver
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.native.kernels import NativeAttention, NativePool
from sessions.engine.torch_attention import TorchAttention

BLOCK_SIZE: Final = 16
CHUNK: Final = 256
"""Tokens of a prefill step: the default token budget."""
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


@click.command()
@click.option("--model", default="default", show_default=True, help="Whose shapes; K and V are random.")
@click.option("--kv-dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float16", show_default=True)
@click.option("--repeats", default=9, show_default=True)
@click.option("--quick", is_flag=True, help="Few cases, few repeats.")
@torch.inference_mode()
def attention(model: str, kv_dtype: str, repeats: int, quick: bool) -> None:
    """Attention by batch and context: native kernels and torch."""
    shapes = read_shapes(model_folder(model))
    batches, contexts = (QUICK_BATCHES, QUICK_CONTEXTS) if quick else (BATCHES, CONTEXTS)
    repeats = min(repeats, 3) if quick else repeats
    cases = [Case(batch, context, 1) for batch in batches for context in contexts]
    cases += [Case(1, context, CHUNK) for context in (0, *contexts[1:])]
    title = f"attention: {shapes.num_layers} layers of {model}, KV {kv_dtype}, {describe_torch()}"
    with measuring(title):
        kernels = find_kernels()
        if kernels is None:
            raise click.ClickException("Without the kernels there is nothing to compare.")
        print(f"   torch reads memory at {read_bandwidth():.1f} GB/s (sum of 1 GiB fp32)")
        cache = random_cache(shapes, getattr(torch, kv_dtype), max(case.batch * case.num_blocks for case in cases))
        pool = NativePool(kernels, cache, BLOCK_SIZE * max(case.num_blocks for case in cases))
        comparison = Comparison(["torch", "native"])
        for case in cases:
            step = Step(case, cache)
            functions = {
                "torch": lambda step=step: step.run(TorchAttention(step.batch, cache)),
                "native": lambda step=step: step.run(NativeAttention(pool, step.batch)),
            }
            for subject, seconds in interleaved(functions, repeats).items():
                note = f"native {number(step.work(median(seconds)))} {step.unit}" if subject == "native" else ""
                comparison.add(Figure(case.name, "ms"), subject, milliseconds(seconds), note)
        comparison.print()


def random_cache(shapes: Shapes, dtype: torch.dtype, num_blocks: int) -> KVCache:
    """A pool full of noise, the same in all layers: each has its own memory, which is what counts."""
    layout = LayerLayout(shapes.num_heads, shapes.num_kv_heads, shapes.head_dim, shapes.head_dim, shapes.head_dim**-0.5)
    cache = KVCache([layout] * shapes.num_layers, num_blocks, BLOCK_SIZE, dtype, torch.device("cpu"))
    for first, *others in (cache.keys, cache.values):
        first.copy_(torch.randn(first.shape))
        for other in others:
            other.copy_(first)
    return cache


def read_bandwidth() -> float:
    """GB/s of a plain sequential read, best of five: what the kernels' GB/s are to be judged by."""
    memory = torch.ones(2**28)
    return memory.nbytes / 1e9 / min(timed(memory.sum) for _ in range(5))


class Step:
    """One step's batch over shuffled blocks, with its queries, keys and values."""

    def __init__(self, case: Case, cache: KVCache) -> None:
        self._case = case
        self._cache = cache
        layout = cache.layers[0]
        num_rows = case.batch * case.num_tokens
        self._query = torch.randn(num_rows, layout.num_heads, layout.head_dim)
        self._key = torch.randn(num_rows, layout.num_kv_heads, layout.head_dim)
        self._value = torch.randn(num_rows, layout.num_kv_heads, layout.value_head_dim)
        self.batch = make_batch(case, len(cache.keys[0]))

    def run(self, receiver: Receiver) -> None:
        for layer, layout in enumerate(self._cache.layers):
            receiver.attend(layer, self._query, self._key, self._value, layout.scaling, layout.sliding_window)

    @property
    def unit(self) -> str:
        return "GB/s" if self._case.num_tokens == 1 else "GFLOP/s"

    def work(self, seconds: float) -> float:
        """Of K and V read (decoding), or of multiply-adds counted as two (a chunk), per second."""
        case, cache = self._case, self._cache
        layout = cache.layers[0]
        seen = sum(range(case.context + 1, case.context + case.num_tokens + 1)) * case.batch
        width = layout.head_dim + layout.value_head_dim
        if case.num_tokens == 1:
            return seen * layout.num_kv_heads * width * cache.dtype.itemsize * len(cache.layers) / seconds / 1e9
        return 2 * seen * layout.num_heads * width * len(cache.layers) / seconds / 1e9


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
