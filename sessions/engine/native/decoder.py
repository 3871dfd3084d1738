"""A decoder built like Llama whose linears are all packed integers: its step is one call without the GIL (decoder.cpp).

Owns the records that the call reads, the tensors they point to, and the memory that steps work in.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import LayerLayout
from sessions.engine.memory import lines
from sessions.engine.native.attention import NativePool
from sessions.engine.native.kernels import Kernels, PackedWeight
from sessions.engine.native.structures import Decoder, DecoderCall, DecoderLayer


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm: weight [width] fp32, contiguous; epsilon."""

    weight: torch.Tensor
    epsilon: float


LinearT = TypeVar("LinearT")


@dataclass(frozen=True, slots=True)
class LayerParts(Generic[LinearT]):
    """A layer, whatever its linears are. head_norms: weights [head_dim] of Q's and K's own norm, and epsilon."""

    layout: LayerLayout
    input_norm: Norm
    qkv: LinearT
    head_norms: tuple[torch.Tensor, torch.Tensor, float] | None
    rotates: bool
    output: LinearT
    mlp_norm: Norm
    gate_up: LinearT
    down: LinearT


PackedLayer = LayerParts[PackedWeight]


class NativeDecoder:
    """Not for two threads at once: steps share their memory."""

    def __init__(
        self, kernels: Kernels, embed: torch.Tensor, layers: Sequence[PackedLayer], norm: Norm, head: PackedWeight
    ) -> None:
        """embed [vocabulary, hidden] fp32, contiguous."""
        self._kernels = kernels
        self._parts = (embed, tuple(layers), norm, head)
        self._records = (DecoderLayer * len(layers))(*map(_record, layers))
        self._decoder = Decoder(
            layers=ctypes.addressof(self._records), embed=embed.data_ptr(), norm=norm.weight.data_ptr(),
            head=head.record, num_layers=len(layers), num_ids=len(embed), hidden=embed.shape[1], epsilon=norm.epsilon,
        )  # fmt: skip
        self._vocabulary = head.outputs
        self._room: npt.NDArray[np.uint8] = lines(0)
        self._last_sequences = np.empty(0, np.uint8)

    def forward(self, batch: Batch, pool: NativePool, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        """cosine, sine [positions, rotary_dim], of all that the batch has -> logits [S, vocabulary]. Writes K and V.

        Raises MemoryError if there is none to work in, and IndexError for a token that the model does not have.
        """
        rows, num_logits, threads = batch.input_ids.shape[1], len(batch.logit_rows), pool.num_threads
        logits = torch.empty(num_logits, self._vocabulary)
        self._decoder.rotary_dim = cosine.shape[-1]
        needed = self._kernels.decoder_bytes(self._decoder, rows, num_logits, threads)
        if len(self._room) < needed:
            self._room = lines(0)  # let go first
            self._room = lines(needed)
        if len(self._last_sequences) < batch.sequences.nbytes:
            self._last_sequences = np.empty(batch.sequences.nbytes, np.uint8)
        self._kernels.decode(
            DecoderCall(
                decoder=ctypes.addressof(self._decoder), pools=pool.address, sequences=batch.sequences.ctypes.data,
                last_sequences=self._last_sequences.ctypes.data, token_ids=batch.input_ids.data_ptr(),
                positions=batch.positions.data_ptr(), logit_rows=batch.logit_rows.data_ptr(),
                cosine=cosine.data_ptr(), sine=sine.data_ptr(), logits=logits.data_ptr(), room=self._room.ctypes.data,
                scratch=pool.scratch.data_ptr(), parts_done=pool.parts_done.data_ptr(),
                rows=rows, num_logits=num_logits, num_sequences=len(batch.sequences), num_threads=threads,
            )
        )  # fmt: skip
        return logits


def _record(layer: PackedLayer) -> DecoderLayer:
    layout = layer.layout
    q_norm, k_norm, head_epsilon = layer.head_norms or (None, None, 0.0)
    return DecoderLayer(
        input_norm=layer.input_norm.weight.data_ptr(), mlp_norm=layer.mlp_norm.weight.data_ptr(),
        q_norm=None if q_norm is None else q_norm.data_ptr(), k_norm=None if k_norm is None else k_norm.data_ptr(),
        qkv=layer.qkv.record, output=layer.output.record, gate_up=layer.gate_up.record, down=layer.down.record,
        q_heads=layout.num_heads, kv_heads=layout.num_kv_heads, head_dim=layout.head_dim,
        window=layout.sliding_window or 0, scaling=layout.scaling, input_epsilon=layer.input_norm.epsilon,
        head_epsilon=head_epsilon, mlp_epsilon=layer.mlp_norm.epsilon,
        rotates=layer.rotates,
    )  # fmt: skip
