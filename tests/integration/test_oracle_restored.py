"""The oracle over blocks that went below the pool and came back: ids are those of a cold run, wherever its part ends.

Real tensors of tiny models, through torch and through the kernels, KV in every dtype.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sessions.engine.kv_cache import KVCache
from sessions.engine.loaded import LoadedModel
from sessions.engine.measure import prepare_model
from sessions.engine.native.kernels import load_kernels
from sessions.engine.request import Request, RestoredBlocks
from sessions.hashing import token_bytes
from sessions.tiers.segment import Anchor, Entry, SegmentShape
from sessions.tiers.segment_file import SegmentFormat
from sessions.tiers.segment_folder import SegmentFolder
from sessions.tiers.segment_memory import SegmentMemory
from sessions.tiers.segment_store import SegmentStore
from tests.oracle import SERVED, Bench, ColdOracle, assert_right, cache_dir, families, tiny_model, tiny_prompts

CASES = [(kind, kernels, torch.float32) for kind in ("llama", "mistral", "gpt2") for kernels in (False, True)]
CASES += [("llama", True, kv_dtype) for kv_dtype in (torch.float16, torch.bfloat16, torch.int8)]
CASES += [("mistral", False, torch.int8)]
"""Full attention, a sliding window, transposed weights."""


def load(kind: str, kernels: bool, kv_dtype: torch.dtype) -> LoadedModel:
    if not kernels:
        return prepare_model(tiny_model(kind, SERVED[kind]), None, kv_dtype=kv_dtype)
    found, reason = load_kernels(cache_dir())
    if found is None:
        pytest.skip(reason)
    return prepare_model(tiny_model(kind, SERVED[kind]), found, kv_dtype=kv_dtype)


def kv_of(bench: Bench) -> KVCache:
    return bench.runner._cache


def on_disk(bench: Bench, folder: Path) -> SegmentStore:
    cache, size = kv_of(bench), bench.config.block_size
    return SegmentStore(SegmentFolder(folder, SegmentFormat(size, cache.block_bytes, b"n" * 16, cache.layout)), 2**30)


def in_memory(bench: Bench, _: Path) -> SegmentStore:
    cache, size = kv_of(bench), bench.config.block_size
    return SegmentStore(SegmentMemory(SegmentShape(size, cache.block_bytes), 2**30, cache.host_rows), 2**30)


def write(bench: Bench, request: Request, store: SegmentStore) -> SegmentStore:
    """What the writer does with a finished request's prompt."""
    cache, size = kv_of(bench), bench.config.block_size
    parent = request.root
    for index in range(request.num_prompt_tokens // size):
        block = bench.scheduler.pool.find(request.chain.hashes[index])
        assert block is not None
        rows = cache.host_rows(1, store.form.stride)
        cache.read_blocks([block.id], rows[:, : cache.block_bytes])
        entry = Entry(request.chain.hashes[index], token_bytes(block.token_ids))
        assert store.append(Anchor(request.root, parent, request.root), [entry], rows, store.num_drops)
        parent = request.chain.hashes[index]
    return store


def read(store: SegmentStore, request: Request, num_blocks: int) -> tuple[RestoredBlocks, ...]:
    size, restored = store.form.block_size, []
    for piece in store.pieces(request.root, request.chain.hashes[:num_blocks], 0):
        expected = [
            Entry(request.chain.hashes[index], token_bytes(request.token_ids[index * size : (index + 1) * size]))
            for index in range(piece.position, piece.position + piece.num_blocks)
        ]
        payload = store.read(piece, expected)
        assert payload is not None
        restored.append(RestoredBlocks(piece.position, payload))
    return tuple(restored)


@pytest.mark.parametrize(
    ("kind", "kernels", "kv_dtype", "opened"),
    [(*case, on_disk) for case in CASES]
    + [("llama", False, torch.float32, in_memory), ("llama", True, torch.int8, in_memory)],
)
def test_one_answer(
    kind: str, kernels: bool, kv_dtype: torch.dtype, opened: Callable[[Bench, Path], SegmentStore], tmp_path: Path
) -> None:
    loaded = load(kind, kernels, kv_dtype)
    prompt = max(tiny_prompts(), key=len)
    oracle = ColdOracle(loaded)
    oracle.learn([prompt])
    origin = Bench(loaded)
    (request,) = origin.run(prompt)
    store = write(origin, request, opened(origin, tmp_path))
    for num_blocks in range((len(prompt) - 1) // origin.config.block_size + 1):
        bench = Bench(loaded)
        again = bench.add(prompt)
        again.restored = read(store, again, num_blocks)
        bench.run()
        assert again.num_restored_tokens == num_blocks * bench.config.block_size
        assert_right(oracle, [again])


@pytest.mark.parametrize("kernels", [False, True], ids=["torch", "kernels"])
def test_forks_of_what_was_restored_copy_at_every_offset(kernels: bool, tmp_path: Path) -> None:
    loaded = load("llama", kernels, torch.float32)
    size = Bench(loaded).config.block_size
    for number, family in enumerate(families(list(range(2, 120)), size)):
        oracle = ColdOracle(loaded)
        oracle.learn(family.prompts)
        origin = Bench(loaded)
        (request,) = origin.run(family.parent)
        store = write(origin, request, on_disk(origin, tmp_path / str(number)))
        bench = Bench(loaded)
        requests = [bench.add(prompt) for prompt in family.prompts]
        for one in requests:
            one.restored = read(store, one, (len(family.parent) - 1) // size)
        bench.run()
        assert_right(oracle, requests)
        assert requests[0].num_restored_tokens == (len(family.parent) - 1) // size * size
