"""A lean forward for decoders built like Llama: the same arithmetic in five operators a layer instead of forty.

    x ─ add+norm ─ qkv ─ rope ─ write K, V ▸ attend ─ o ─ add+norm ─ gate, up ─ silu·mul ─ down ─▶ delta of the next add

transformers' modules say what the parts are (`recipe.take_apart`); the kernels between the linears are ours
(`native/`). It is used only if its logits agree with the model's own forward (`check`): so a cousin with one more
multiplier is served through its own modules, never wrongly.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import LayerLayout
from sessions.engine.linear import Linear, Quantization
from sessions.engine.native.kernels import Kernels, NativeAttention
from sessions.engine.recipe import Layer, Norm, Projection, Recipe

Weights = Callable[[str], torch.Tensor]
"""A weight by its name in the recipe, fp32. Raises KeyError."""


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMSNorm: weight [width] fp32, epsilon."""

    weight: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """head_norms: weights [head_dim] of Q's and K's own norm, and epsilon."""

    layout: LayerLayout
    input_norm: _Norm
    qkv: Linear
    head_norms: tuple[torch.Tensor, torch.Tensor, float] | None
    rotates: bool
    output: Linear
    mlp_norm: _Norm
    gate_up: Linear
    down: Linear


class FusedDecoder:
    """fp32 on CPU; needs `NativeAttention`. Shares the weights it is given until `pack`."""

    def __init__(self, recipe: Recipe, weights: Weights, kernels: Kernels) -> None:
        self._kernels = kernels
        self._embed = weights(recipe.embed)
        self._rotary = recipe.rotary
        self._layers = [_build_layer(layer, weights) for layer in recipe.layers]
        self._norm = _build_norm(recipe.norm, weights)
        self._head = _build_linear([recipe.head], weights)

    def pack(self, quantization: Quantization) -> list[Linear]:
        """Pack all linears, on as many threads as torch uses; the weights they were made of are let go. Mutates."""
        linears = [self._head]
        for layer in self._layers:
            linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
        with ThreadPoolExecutor(torch.get_num_threads(), "anaphora-pack") as threads:
            list(threads.map(lambda linear: linear.pack(quantization, self._kernels), linears))
        return linears

    def forward(self, batch: Batch, attention: NativeAttention) -> torch.Tensor:
        """Writes the batch's K and V; returns logits [S, vocabulary]."""
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


def _build_layer(layer: Layer, weights: Weights) -> _Layer:
    head_norms = None
    if layer.head_norms is not None:
        q_norm, k_norm = layer.head_norms
        head_norms = (weights(q_norm.weight), weights(k_norm.weight), q_norm.epsilon)
    return _Layer(
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


def _build_norm(norm: Norm, weights: Weights) -> _Norm:
    return _Norm(weights(norm.weight).contiguous(), norm.epsilon)


def _build_linear(parts: Sequence[Projection], weights: Weights) -> Linear:
    return Linear([(weights(part.weight), None if part.bias is None else weights(part.bias)) for part in parts])
