"""Attention by the kernels: a pool as they see it, and one step over it."""

import ctypes

import torch

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.native.kernels import POOL_DTYPES, Kernels
from sessions.engine.native.structures import AttentionCall, LayerPool


class NativePool:
    """A pool as the kernels see it, made once: a record per layer, and scratch for split attention."""

    def __init__(self, kernels: Kernels, cache: KVCache, max_model_len: int) -> None:
        self.kernels = kernels
        self.cache = cache
        self._records = (LayerPool * len(cache.layers))(*(_record(cache, layer) for layer in range(len(cache.layers))))
        self.address = ctypes.addressof(self._records)
        parts = -(-max_model_len // kernels.partition)
        width = max(kv.value_head_dim for kv in cache.layers) + 2
        # Fixed with the scratch that was sized for it: a later torch.set_num_threads must not outgrow it.
        self.num_threads = torch.get_num_threads()
        cut_tasks = kernels.max_cut_tasks * self.num_threads
        self.scratch = torch.empty(cut_tasks * parts * kernels.max_rows * width)
        self.parts_done = torch.empty(cut_tasks, dtype=torch.int32)


def _record(cache: KVCache, layer: int) -> LayerPool:
    kv, scaled = cache.layers[layer], bool(cache.key_scales)
    return LayerPool(
        keys=cache.keys[layer].data_ptr(), values=cache.values[layer].data_ptr(),
        key_scales=cache.key_scales[layer].data_ptr() if scaled else None,
        value_scales=cache.value_scales[layer].data_ptr() if scaled else None,
        dtype=POOL_DTYPES[cache.dtype], block_size=cache.block_size, kv_heads=kv.num_kv_heads, head_dim=kv.head_dim,
        value_dim=kv.value_head_dim,
    )  # fmt: skip


class NativeAttention:
    """One step's attention over one pool; see `attention.Receiver`. Reads blocks in place; allocates its outputs."""

    def __init__(self, pool: NativePool, batch: Batch) -> None:
        self.pool = pool
        self._batch = batch
        sequences = batch.sequences
        self._call = AttentionCall(
            sequences=sequences.ctypes.data,
            scratch=pool.scratch.data_ptr(),
            parts_done=pool.parts_done.data_ptr(),
            num_sequences=len(sequences),
            num_threads=pool.num_threads,
        )
        self._address = ctypes.addressof(self._call)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> torch.Tensor:
        """query [T, Hq, d], key [T, Hkv, d], value [T, Hkv, dv] -> [T, Hq, dv]. Writes K and V to the pool first."""
        dtype = query.dtype
        query, key, value = _packed(query), _packed(key), _packed(value)
        out = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        call = self._call
        call.query, call.key, call.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
        call.query_row, call.query_head, _ = query.stride()
        call.key_row, call.key_head, _ = key.stride()
        call.value_row, call.value_head, _ = value.stride()
        call.q_heads, call.window, call.scaling = query.shape[1], sliding_window or 0, scaling
        self._run(layer, out)
        return out.to(dtype)

    def attend_qkv(self, layer: int, qkv: torch.Tensor, layout: LayerLayout) -> torch.Tensor:
        """qkv [T, (Hq + 2 Hkv) * d] fp32, contiguous, Q and K rotated -> [T, Hq * d]."""
        rows, stride = qkv.shape
        d = layout.head_dim
        out = qkv.new_empty(rows, layout.num_heads * d)
        call = self._call
        call.query = qkv.data_ptr()
        call.key = call.query + 4 * d * layout.num_heads
        call.value = call.key + 4 * d * layout.num_kv_heads
        call.query_row = call.key_row = call.value_row = stride
        call.query_head = call.key_head = call.value_head = d
        call.q_heads, call.window, call.scaling = layout.num_heads, layout.sliding_window or 0, layout.scaling
        self._run(layer, out)
        return out

    def _run(self, layer: int, out: torch.Tensor) -> None:
        self._call.pool = self.pool.address + layer * ctypes.sizeof(LayerPool)
        self._call.out = out.data_ptr()
        self.pool.kernels.attention(self._address)


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 with a contiguous last dimension; a copy only where it is neither."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
