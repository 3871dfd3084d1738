"""Typed calls into the C++ kernels; all tensors are CPU, fp32 unless said.

Calls that compute release the GIL; the small ones of one or a few rows do not (giving it up costs more than they do).
"""

import ctypes
from dataclasses import dataclass
from functools import cache as memoised
from pathlib import Path
from typing import Any, Final

import torch

from sessions.engine.kv_cache import KVCache
from sessions.engine.memory import Arena
from sessions.engine.native.build import BuildFailed, build
from sessions.engine.native.structures import F32, I32, I64, Decoder, DecoderCall, DrawCall, Linear, P

POOL_DTYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
LANES: Final = 8
"""Floats of one vector: block size and value head size must be multiples of it."""
SMALL: Final = 16_384
"""Floats below which a row operator keeps the GIL: it runs for a few microseconds."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A linear layer packed by `Kernels.pack_linear`; linear.cpp draws the bytes. bits: of an integer, 4 or 8."""

    packed: torch.Tensor
    bias: torch.Tensor | None
    inputs: int
    outputs: int
    bits: int

    @property
    def record(self) -> Linear:
        return Linear(
            packed=self.packed.data_ptr(), bias=None if self.bias is None else self.bias.data_ptr(),
            inputs=self.inputs, outputs=self.outputs, bits=self.bits,
        )  # fmt: skip


class Kernels:
    """The loaded library. Raises OSError if the file cannot be loaded."""

    def __init__(self, path: Path) -> None:
        self.build = path.stem.removeprefix("kernels-")
        """Sources, flags, compiler and instruction set: other ones may round differently."""
        # torch is imported first, so that the library binds to the OpenMP runtime torch brought: one thread pool.
        self._library = ctypes.CDLL(str(path))
        self._held: Any = ctypes.PyDLL(str(path))
        self.attention = self._library.anaphora_attention
        self.attention.argtypes = (P,)
        self.attention.restype = None
        for library in (self._library, self._held):
            library.anaphora_add_rms_norm.argtypes = (P, P, P, P, I64, I64, F32, I32)
            library.anaphora_silu_mul.argtypes = (P, P, I64, I64, I32)
            library.anaphora_rope.argtypes = (P, P, P, P, P, I64, I64, I32, I32, I32, I32, F32, I32)
            for name in ("add_rms_norm", "silu_mul", "rope"):
                getattr(library, f"anaphora_{name}").restype = None
        self._library.anaphora_draw.argtypes = (P,)
        self._library.anaphora_draw.restype = None
        self._library.anaphora_draw_bytes.argtypes = (I64, I32)
        self._library.anaphora_draw_bytes.restype = I64
        self._library.anaphora_decoder.argtypes = (P,)
        self._library.anaphora_decoder.restype = I32
        self._library.anaphora_decoder_bytes.argtypes = (P, I64, I64, I32)
        self._library.anaphora_decoder_bytes.restype = I64
        self._library.anaphora_linear.argtypes = (P, P, P, I64, I32)
        self._library.anaphora_linear.restype = I32
        self._library.anaphora_pack_linear.argtypes = (P, P, I64, I64, I32, I32)
        self._library.anaphora_packed_bytes.argtypes = (I64, I64, I32)
        self._library.anaphora_packed_bytes.restype = I64
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
            ctypes.byref(weight.record), x.data_ptr(), out.data_ptr(), rows, torch.get_num_threads()
        )
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

    def decode(self, call: DecoderCall) -> None:
        """A decoder's whole step (decoder.cpp). Raises IndexError for a token id that the model does not have."""
        if not self._library.anaphora_decoder(ctypes.byref(call)):
            raise IndexError("a token id is none of the model's")

    def decoder_bytes(self, decoder: Decoder, rows: int, num_logits: int, num_threads: int) -> int:
        """Of the memory that such a step works in."""
        return int(self._library.anaphora_decoder_bytes(ctypes.byref(decoder), rows, num_logits, num_threads))

    def draw(self, call: DrawCall) -> None:
        """Tokens from logits (draw.cpp)."""
        self._library.anaphora_draw(ctypes.byref(call))

    def draw_bytes(self, width: int, num_threads: int) -> int:
        """Of the memory that drawing works in."""
        return int(self._library.anaphora_draw_bytes(width, num_threads))

    def _pick(self, size: int) -> Any:
        return self._held if size < SMALL else self._library


@memoised
def load_kernels(cache_dir: Path) -> tuple[Kernels | None, str]:
    """The library, built if need be; or None and why, in one sentence without a full stop."""
    try:
        return Kernels(build(cache_dir)), ""
    except BuildFailed as failure:
        return None, str(failure)
    except OSError as error:
        return None, f"the compiled kernels cannot be loaded: {error}"
