"""Typed calls into the C++ kernels. The only file that knows their structures; all tensors are CPU, fp32 unless said.

Calls that compute release the GIL; the small ones of one or a few rows do not (giving it up costs more than they do).
"""

import ctypes
import threading
from dataclasses import dataclass
from functools import cache as memoised
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.native.build import BuildFailed, build

POOL_DTYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
LANES: Final = 8
"""Floats of one vector: block size and value head size must be multiples of it."""
SMALL: Final = 16_384
"""Floats below which a row operator keeps the GIL: it runs for a few microseconds."""

CACHE_LINE: Final = 64
"""Bytes."""
ARENA_BYTES: Final = 32 << 20

_P = ctypes.c_void_p
_I32 = ctypes.c_int32
_I64 = ctypes.c_int64
_F32 = ctypes.c_float


class _LayerPool(ctypes.Structure):
    _fields_ = (
        ("keys", _P), ("values", _P), ("key_scales", _P), ("value_scales", _P),
        ("dtype", _I32), ("block_size", _I32), ("kv_heads", _I32), ("head_dim", _I32), ("value_dim", _I32),
        ("unused", _I32),
    )  # fmt: skip


class _AttentionCall(ctypes.Structure):
    _fields_ = (
        ("pool", _P), ("sequences", _P),
        ("query", _P), ("key", _P), ("value", _P), ("out", _P), ("scratch", _P), ("parts_done", _P),
        ("query_row", _I64), ("query_head", _I64), ("key_row", _I64), ("key_head", _I64),
        ("value_row", _I64), ("value_head", _I64),
        ("num_sequences", _I32), ("q_heads", _I32), ("window", _I32), ("num_threads", _I32),
        ("scaling", _F32),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A linear layer packed by `Kernels.pack_linear`; linear.cpp draws the bytes. bits: of an integer, 4 or 8."""

    packed: torch.Tensor
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int


class Arena:
    """Memory for packed weights, side by side in pages of 2 MiB where Linux has them (madvise, which numpy calls).

    By pages of 4 KiB one thread of a virtual machine read 7 to 11 GB/s, by these 26: a layer alone is smaller than one.
    Layers are packed by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = np.empty(0, np.uint8)
        self._taken = 0

    def keep(self, packed: torch.Tensor) -> torch.Tensor:
        """A copy of uint8 [n] in the arena."""
        size = len(packed)
        with self._lock:
            if self._taken + size > len(self._chunk):
                chunk = np.empty(max(size, ARENA_BYTES) + CACHE_LINE, np.uint8)
                # malloc promises 16 bytes: a vector of weights that lies across two lines is read twice.
                begin = -chunk.ctypes.data % CACHE_LINE
                self._chunk, self._taken = chunk[begin : begin + len(chunk) - CACHE_LINE], 0
            place = torch.from_numpy(self._chunk[self._taken : self._taken + size])
            self._taken += -(-size // CACHE_LINE) * CACHE_LINE
        return place.copy_(packed)


class Kernels:
    """The loaded library. Raises OSError if the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.build = path.stem.removeprefix("kernels-")
        """Sources, flags, compiler and instruction set: other ones may round differently."""
        # torch is imported first, so that the library binds to the OpenMP runtime torch brought: one thread pool.
        self._library = ctypes.CDLL(str(path))
        self._held: Any = ctypes.PyDLL(str(path))
        self.attention = self._library.anaphora_attention
        self.attention.argtypes = (_P,)
        self.attention.restype = None
        for library in (self._library, self._held):
            library.anaphora_add_rms_norm.argtypes = (_P, _P, _P, _P, _I64, _I64, _F32, _I32)
            library.anaphora_silu_mul.argtypes = (_P, _P, _I64, _I64, _I32)
            library.anaphora_rope.argtypes = (_P, _P, _P, _P, _P, _I64, _I64, _I32, _I32, _I32, _I32, _F32, _I32)
            for name in ("add_rms_norm", "silu_mul", "rope"):
                getattr(library, f"anaphora_{name}").restype = None
        self._library.anaphora_linear.argtypes = (_P,) * 4 + (_I64, _I64, _I64, _I32, _I32)
        self._library.anaphora_linear.restype = _I32
        self._library.anaphora_pack_linear.argtypes = (_P, _P, _I64, _I64, _I32, _I32)
        self._library.anaphora_packed_bytes.argtypes = (_I64, _I64, _I32)
        self._library.anaphora_packed_bytes.restype = _I64
        self._arena = Arena()
        self.partition = int(self._library.anaphora_partition())
        self.max_rows = int(self._library.anaphora_max_rows())
        self.max_cut_tasks = int(self._library.anaphora_max_cut_tasks())
        self.max_head_dim = int(self._library.anaphora_max_head_dim())

    def can_attend(self, cache: KVCache) -> bool:
        """Do the kernel's limits hold for this pool?"""
        return (
            cache.device.type == "cpu"
            and cache.dtype in POOL_DTYPES
            and cache.block_size % LANES == 0
            and all(
                kv.value_head_dim % LANES == 0
                and max(kv.head_dim, kv.value_head_dim) <= self.max_head_dim
                and kv.num_heads // kv.num_kv_heads <= self.max_rows
                for kv in cache.layers
            )
        )

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, out: torch.Tensor, epsilon: float
    ) -> None:
        """x [T, H] += delta; out = x / rms(x) * weight (RMSNorm, https://arxiv.org/abs/1910.07467)."""
        rows, width = x.shape
        self._pick(rows * width).anaphora_add_rms_norm(
            x.data_ptr(), None if delta is None else delta.data_ptr(), weight.data_ptr(), out.data_ptr(),
            rows, width, epsilon, torch.get_num_threads(),
        )  # fmt: skip

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> None:
        """gate_up [T, 2 * I] -> out [T, I] = silu(gate) * up (SwiGLU, https://arxiv.org/abs/2002.05202)."""
        rows, width = out.shape
        self._pick(2 * rows * width).anaphora_silu_mul(
            gate_up.data_ptr(), out.data_ptr(), rows, width, torch.get_num_threads()
        )

    def rope(
        self,
        qkv: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None,
        heads: tuple[int, int, int],
    ) -> None:
        """Norm (if given: q weight, k weight, epsilon) and rotate Q and K of qkv [T, stride] in place.

        cosine, sine: [T, rotary_dim]. heads: query heads, KV heads, head size.
        """
        rows, stride = qkv.shape
        num_heads, num_kv_heads, head_dim = heads
        q_norm, k_norm, epsilon = norms or (None, None, 0.0)
        self._pick(rows * stride).anaphora_rope(
            qkv.data_ptr(), cosine.data_ptr(), sine.data_ptr(),
            None if q_norm is None else q_norm.data_ptr(), None if k_norm is None else k_norm.data_ptr(),
            rows, stride, num_heads, num_heads + num_kv_heads, head_dim, cosine.shape[-1], epsilon,
            torch.get_num_threads(),
        )  # fmt: skip

    def linear(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """x [..., in] -> [..., out] = x @ weight.T + bias, every row on its own. Raises MemoryError."""
        rows = x.numel() // weight.inputs
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], weight.outputs)
        done = self._library.anaphora_linear(
            x.data_ptr(), weight.packed.data_ptr(), None if weight.bias is None else weight.bias.data_ptr(),
            out.data_ptr(), rows, weight.inputs, weight.outputs, weight.bits,
            torch.get_num_threads(),
        )  # fmt: skip
        if not done:
            raise MemoryError("no memory for the rounded input of a linear layer")
        return out

    def pack_linear(
        self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, *, rounds: bool = False
    ) -> PackedWeight | None:
        """weight [out, in], bias [out], fp32. None if the weights of some block lie on no grid of so many bits.

        rounds: to the nearest grid instead (8 bits only); None then for weights that are not finite, or too large.
        """
        outputs, inputs = weight.shape
        weight = weight.contiguous()
        packed = torch.empty(self._library.anaphora_packed_bytes(outputs, inputs, bits), dtype=torch.uint8)
        done = self._library.anaphora_pack_linear(
            weight.data_ptr(), packed.data_ptr(), outputs, inputs, bits, int(rounds)
        )
        return PackedWeight(self._arena.keep(packed), bias, inputs, outputs, bits) if done else None

    def _pick(self, size: int) -> Any:
        return self._held if size < SMALL else self._library


class NativePool:
    """A pool as the kernels see it, made once: a record per layer, and scratch for split attention."""

    def __init__(self, kernels: Kernels, cache: KVCache, max_model_len: int) -> None:
        self.kernels = kernels
        self.cache = cache
        self._records = [_record(cache, layer) for layer in range(len(cache.layers))]
        self.addresses = [ctypes.addressof(record) for record in self._records]
        parts = -(-max_model_len // kernels.partition)
        width = max(kv.value_head_dim for kv in cache.layers) + 2
        # Fixed with the scratch that was sized for it: a later torch.set_num_threads must not outgrow it.
        self.num_threads = torch.get_num_threads()
        cut_tasks = kernels.max_cut_tasks * self.num_threads
        self.scratch = torch.empty(cut_tasks * parts * kernels.max_rows * width)
        self.parts_done = torch.empty(cut_tasks, dtype=torch.int32)


def _record(cache: KVCache, layer: int) -> _LayerPool:
    kv, scaled = cache.layers[layer], bool(cache.key_scales)
    return _LayerPool(
        keys=cache.keys[layer].data_ptr(), values=cache.values[layer].data_ptr(),
        key_scales=cache.key_scales[layer].data_ptr() if scaled else None,
        value_scales=cache.value_scales[layer].data_ptr() if scaled else None,
        dtype=POOL_DTYPES[cache.dtype], block_size=cache.block_size, kv_heads=kv.num_kv_heads, head_dim=kv.head_dim,
        value_dim=kv.value_head_dim,
    )  # fmt: skip


class NativeAttention:
    """One step's attention over one pool; see `attention.Receiver`. Reads blocks in place; allocates its outputs."""

    def __init__(self, pool: NativePool, batch: Batch) -> None:
        self._pool = pool
        self._batch = batch
        sequences = batch.sequences
        self._call = _AttentionCall(
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
        self._call.pool = self._pool.addresses[layer]
        self._call.out = out.data_ptr()
        self._pool.kernels.attention(self._address)


def _packed(tensor: torch.Tensor) -> torch.Tensor:
    """fp32 with a contiguous last dimension; a copy only where it is neither."""
    tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@memoised
def load_kernels(cache_dir: Path) -> tuple[Kernels | None, str]:
    """The library, built if need be; or None and why, in one sentence without a full stop."""
    try:
        return Kernels(build(cache_dir)), ""
    except BuildFailed as failure:
        return None, str(failure)
    except OSError as error:
        return None, f"the compiled kernels cannot be loaded: {error}"
