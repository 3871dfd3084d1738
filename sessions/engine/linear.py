"""A linear layer whose weights are packed once for the CPU.

    none   F.linear in the model's dtype: what the oracle compares with
    file   our kernel: the very integers of a GGUF's Q4_0, Q4_1 and Q8_0, found again in the weights; as fp16 where
           there are none. Error about 1e-4 of the result, of rounding activations to 16 bits
    fp16   fbgemm, weights rounded to half, arithmetic fp32: about 2e-4
    int8   our kernel, weights rounded to 8 bits with a scale for every 32 inputs: about 4e-3

In all of them a row's result depends on that row alone, so an answer does not depend on who shares the batch. torch's
own int8 linear takes one 7-bit scale for the whole input, which is neither (docs/log.md has the figures).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch.nn.functional import linear

from sessions.engine.native.kernels import Kernels, PackedWeight

Quantization = Literal["none", "file", "fp16", "int8"]
QUANTIZATIONS: Final = get_args(Quantization)

_quantized: Any = torch.ops.quantized


class Linear(torch.nn.Module):
    """y [T, out] = x [T, in] @ weight.T + bias; several layers that share their input are one, outputs side by side."""

    def __init__(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
        """parts: weight [out, in] and bias [out] of each."""
        super().__init__()
        self.packed: PackedWeight | None = None
        self._parts = list(parts)
        self._half: Any = None
        self._kernels: Kernels | None = None

    def pack(self, quantization: Quantization, kernels: Kernels | None) -> None:
        """Replace the weights by packed ones; the originals are let go. CPU only; all but fp16 need the kernels."""
        if quantization == "none":
            return
        weight = torch.cat([weight.detach() for weight, _ in self._parts]).float().contiguous()
        biases = [bias.detach() if bias is not None else weight.new_zeros(len(part)) for part, bias in self._parts]
        bias = torch.cat(biases).float() if any(bias is not None for _, bias in self._parts) else None
        if quantization != "fp16":
            assert kernels is not None
            self.packed, self._kernels = pack_integers(weight, bias, quantization, kernels), kernels
        if self.packed is None:
            if not can_pack():
                return
            self._half = _quantized.linear_prepack_fp16(weight, bias)
        self._parts = []

    @property
    def form(self) -> str:
        """What its weights are now."""
        if self.packed is not None:
            return f"{self.packed.bits}-bit integers"
        return "fp16" if self._half is not None else "unpacked"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is not None and self._kernels is not None:
            return self._kernels.linear(x, self.packed)
        if self._half is not None:
            result: torch.Tensor = _quantized.linear_dynamic_fp16(x, self._half)
            return result
        if len(self._parts) == 1:
            return linear(x, *self._parts[0])
        return torch.cat([linear(x, weight, bias) for weight, bias in self._parts], dim=-1)


def pack_integers(
    weight: torch.Tensor, bias: torch.Tensor | None, quantization: Quantization, kernels: Kernels
) -> PackedWeight | None:
    """weight [out, in], bias [out], fp32. None if the weights are no integers, or cannot be rounded to any."""
    if quantization == "int8":
        return kernels.pack_linear(weight, bias, 8, rounds=True)
    return kernels.pack_linear(weight, bias, 4) or kernels.pack_linear(weight, bias, 8)


def describe_forms(linears: Iterable[Linear]) -> str:
    """How many of them are what, as "1 in 8-bit integers, 120 in 4-bit integers"."""
    return ", ".join(f"{count} in {form}" for form, count in Counter(linear.form for linear in linears).items())


def can_pack() -> bool:
    """Does this build of torch have the packed fp16 kernel (x86 does; not every other)?"""
    return bool({"x86", "fbgemm"} & set(torch.backends.quantized.supported_engines))
