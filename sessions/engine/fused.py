"""A lean forward for decoders built like Llama: the same arithmetic in five operators a layer instead of forty.

    x ─ add+norm ─ qkv ─ rope ─ write K, V ▸ attend ─ o ─ add+norm ─ gate, up ─ silu·mul ─ down ─▶ delta of the next add

transformers' modules say what the parts are; the kernels between the linears are ours (`native/`). A model is taken
apart only if its parts are exactly those known here, and used only if its logits then agree with its own forward
(`loader.check_paged`): so a cousin with one more multiplier is served through its own modules, never wrongly.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import embedding

from sessions.engine.batch import Batch
from sessions.engine.kv_cache import LayerLayout
from sessions.engine.linear import Linear, Quantization
from sessions.engine.native.kernels import Kernels, NativeAttention

_MODEL: Final = {"model", "lm_head"}
_BODY: Final = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS: Final = {"q_norm", "k_norm"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, slots=True)
class _Norm:
    """RMSNorm: weight [width] fp32, epsilon."""

    weight: torch.Tensor
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Layer:
    """head_norms: weights [head_dim] of Q's and K's own norm, and epsilon. rotates: does this layer use RoPE?"""

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
    """Made by `take_apart`. fp32 on CPU; needs `NativeAttention`."""

    def __init__(
        self, kernels: Kernels, embed: torch.Tensor, rotary: Any, layers: list[_Layer], norm: _Norm, head: Linear
    ) -> None:
        self._kernels = kernels
        self._embed = embed
        self._rotary = rotary
        self._layers = layers
        self._norm = norm
        self._head = head

    def pack(self, quantization: Quantization) -> None:
        """Pack all linears; the model's own weights are let go. Mutates."""
        for layer in self._layers:
            for part in (layer.qkv, layer.output, layer.gate_up, layer.down):
                part.pack(quantization, self._kernels)
        self._head.pack(quantization, self._kernels)

    def forward(self, batch: Batch, attention: NativeAttention) -> torch.Tensor:
        """Writes the batch's K and V; returns logits [S, vocabulary]."""
        kernels = self._kernels
        x = embedding(batch.input_ids[0], self._embed)
        cosine, sine = (table[0].contiguous() for table in self._rotary(x, batch.positions))
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


def take_apart(model: Any, layouts: tuple[LayerLayout, ...], kernels: Kernels) -> FusedDecoder | None:
    """The parts of a decoder, sharing its weights; None if they are not those known here."""
    if _children(model) != _MODEL or _children(model.model) != _BODY or model.dtype != torch.float32:
        return None
    body = model.model
    layers = [_layer(layer, layout) for layer, layout in zip(body.layers, layouts, strict=True)]
    norm = _norm(body.norm)
    known = [layer for layer in layers if layer is not None]
    if norm is None or len(known) < len(layers):
        return None
    return FusedDecoder(
        kernels, body.embed_tokens.weight.detach(), body.rotary_emb, known, norm, Linear([model.lm_head])
    )


def _layer(layer: Any, layout: LayerLayout) -> _Layer | None:
    if _children(layer) != _LAYER or _children(layer.mlp) != _MLP:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    norms = _children(attention) - _ATTENTION
    input_norm, mlp_norm = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    if (
        norms not in (set(), _HEAD_NORMS)
        or input_norm is None
        or mlp_norm is None
        or "SiLU" not in type(mlp.act_fn).__name__
        or layout.head_dim != layout.value_head_dim
    ):
        return None
    head_norms = None
    if norms:
        q_norm, k_norm = _norm(attention.q_norm), _norm(attention.k_norm)
        if q_norm is None or k_norm is None or q_norm.weight.shape != (layout.head_dim,):
            return None
        head_norms = (q_norm.weight, k_norm.weight, q_norm.epsilon)
    return _Layer(
        layout=layout,
        input_norm=input_norm,
        qkv=Linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms=head_norms,
        rotates=bool(getattr(attention, "use_rope", True)),
        output=Linear([attention.o_proj]),
        mlp_norm=mlp_norm,
        gate_up=Linear([mlp.gate_proj, mlp.up_proj]),
        down=Linear([mlp.down_proj]),
    )


def _norm(module: Any) -> _Norm | None:
    epsilon = getattr(module, "variance_epsilon", None)
    if "RMSNorm" not in type(module).__name__ or epsilon is None:
        return None
    return _Norm(module.weight.detach().contiguous(), float(epsilon))


def _children(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
