"""A lean forward for decoders built like Llama: the same arithmetic in five operators a layer instead of forty.

    x ─ add+norm ─ qkv ─ rope ─ write K, V ▸ attend ─ o ─ add+norm ─ gate, up ─ silu·mul ─ down ─▶ delta of the next add

Where all linears are packed integers the whole step is one call (`native.decoder`); else the operators are called one
by one, which gives the same bits.

transformers' modules say what the parts are (`recipe.take_apart`); the kernels between the linears are ours
(`native/`). It is used only if its logits agree with the model's own forward (`check`): so a cousin with one more
multiplier is served through its own modules, never wrongly.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch.nn.functional import embedding

from sessions.engine.batch import Batch
from sessions.engine.linear import Linear, Quantization
from sessions.engine.native.attention import NativeAttention
from sessions.engine.native.decoder import LayerParts, NativeDecoder, Norm, PackedLayer
from sessions.engine.native.kernels import Kernels
from sessions.engine.recipe import Layer, Projection, Recipe, Rotary
from sessions.engine.recipe import Norm as NormRecipe

SHORTEST_TABLE: Final = 4096
"""Positions."""

Weights = Callable[[str], torch.Tensor]
"""A weight by its name in the recipe, fp32. Raises KeyError."""


_Layer = LayerParts[Linear]


class FusedDecoder:
    """fp32 on CPU; needs `NativeAttention`. Shares the weights it is given until `pack`."""

    def __init__(self, recipe: Recipe, weights: Weights, kernels: Kernels) -> None:
        self._kernels = kernels
        self._embed = weights(recipe.embed).contiguous()
        self._rotary = recipe.rotary
        self._angles = _Angles(recipe.rotary)
        self._layers = [_build_layer(layer, weights) for layer in recipe.layers]
        self._norm = _build_norm(recipe.norm, weights)
        self._head = _build_linear([recipe.head], weights)
        self._native: NativeDecoder | None = None

    def pack(self, quantization: Quantization) -> list[Linear]:
        """Pack all linears, on as many threads as torch uses; the weights they were made of are let go. Mutates."""
        linears = [self._head]
        for layer in self._layers:
            linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
        with ThreadPoolExecutor(torch.get_num_threads(), "anaphora-pack") as threads:
            list(threads.map(lambda linear: linear.pack(quantization, self._kernels), linears))
        layers, head = [_packed(layer) for layer in self._layers], self._head.packed
        whole = [layer for layer in layers if layer is not None]
        if head is not None and len(whole) == len(layers):
            self._native = NativeDecoder(self._kernels, self._embed, whole, self._norm, head)
        return linears

    def forward(self, batch: Batch, attention: NativeAttention) -> torch.Tensor:
        """Writes the batch's K and V; returns logits [S, vocabulary]."""
        if self._native is None:
            return self.by_operators(batch, attention)
        last_position = int(batch.positions.numpy().max())
        return self._native.forward(batch, attention.pool, *self._angles.until(last_position))

    def by_operators(self, batch: Batch, attention: NativeAttention) -> torch.Tensor:
        """The same, an operator at a time: for any linears."""
        kernels = self._kernels
        x = embedding(batch.input_ids[0], self._embed)
        cosine, sine = self._rotary.tables(batch.positions[0])
        normed = torch.empty_like(x)
        delta: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            kernels.add_rms_norm(x, delta, layer.input_norm.weight, normed, layer.input_norm.epsilon)
            qkv = layer.qkv(normed)
            layout = layer.layout
            if layer.rotates:
                heads = (layout.num_heads, layout.num_kv_heads, layout.head_dim)
                kernels.rope(qkv, cosine, sine, layer.head_norms, heads)
            attended = attention.attend_qkv(index, qkv, layout)
            if index == len(self._layers) - 1:  # from here on only rows whose logits are wanted matter
                if not len(batch.logit_rows):
                    return x.new_empty(0, len(self._embed))
                x, attended, normed = (tensor[batch.logit_rows] for tensor in (x, attended, normed))
            delta = layer.output(attended)
            kernels.add_rms_norm(x, delta, layer.mlp_norm.weight, normed, layer.mlp_norm.epsilon)
            gate_up = layer.gate_up(normed)
            activated = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
            kernels.silu_mul(gate_up, activated)
            delta = layer.down(activated)
        kernels.add_rms_norm(x, delta, self._norm.weight, normed, self._norm.epsilon)
        logits: torch.Tensor = self._head(normed)
        return logits


class _Angles:
    """RoPE's tables of all positions so far, computed once. They grow by doubling: a long context pays for itself."""

    def __init__(self, rotary: Rotary) -> None:
        self._rotary = rotary
        self._tables = rotary.tables(torch.arange(0))

    def until(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cosine, sine [n, rotary_dim], n > position."""
        if position >= len(self._tables[0]):
            length = max(SHORTEST_TABLE, 1 << position.bit_length())
            self._tables = self._rotary.tables(torch.arange(length))
        return self._tables


def _packed(layer: _Layer) -> PackedLayer | None:
    """None if one of its linears is no integers."""
    qkv, output, gate_up, down = (linear.packed for linear in (layer.qkv, layer.output, layer.gate_up, layer.down))
    if qkv is None or output is None or gate_up is None or down is None:
        return None
    return LayerParts(
        layer.layout, layer.input_norm, qkv, layer.head_norms, layer.rotates, output, layer.mlp_norm, gate_up, down
    )


def _build_layer(layer: Layer, weights: Weights) -> _Layer:
    head_norms = None
    if layer.head_norms is not None:
        q_norm, k_norm = layer.head_norms
        head_norms = (weights(q_norm.weight), weights(k_norm.weight), q_norm.epsilon)
    return LayerParts(
        layout=layer.layout,
        input_norm=_build_norm(layer.input_norm, weights),
        qkv=_build_linear(layer.qkv, weights),
        head_norms=head_norms,
        rotates=layer.rotates,
        output=_build_linear([layer.output], weights),
        mlp_norm=_build_norm(layer.mlp_norm, weights),
        gate_up=_build_linear(layer.gate_up, weights),
        down=_build_linear([layer.down], weights),
    )


def _build_norm(norm: NormRecipe, weights: Weights) -> Norm:
    return Norm(weights(norm.weight).contiguous(), norm.epsilon)


def _build_linear(parts: Sequence[Projection], weights: Weights) -> Linear:
    return Linear([(weights(part.weight), None if part.bias is None else weights(part.bias)) for part in parts])
