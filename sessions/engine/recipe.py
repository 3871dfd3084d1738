"""How a decoder built like Llama is put together: names of its weights, and the numbers that are none. Pure data.

`take_apart` reads it off a transformers model, `fused.FusedDecoder` is made of it and of weights by name. It becomes
JSON, so that a later start can build the lean forward from the weights' files alone (`recall`).
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from sessions.engine.kv_cache import LayerLayout

_MODEL: Final = {"model", "lm_head"}
_BODY: Final = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER: Final = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS: Final = {"q_norm", "k_norm"}
_MLP: Final = {"gate_proj", "up_proj", "down_proj", "act_fn"}


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm: the name of its weight [width], and epsilon."""

    weight: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer: names of its weight [out, in] and bias [out]."""

    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class Layer:
    """Projections that share their input stand together. head_norms: of Q and K. rotates: does it use RoPE?"""

    layout: LayerLayout
    input_norm: Norm
    qkv: tuple[Projection, ...]
    head_norms: tuple[Norm, Norm] | None
    rotates: bool
    output: Projection
    mlp_norm: Norm
    gate_up: tuple[Projection, ...]
    down: Projection


@dataclass(frozen=True, slots=True)
class Rotary:
    """RoPE whose angles do not depend on the length: position * inverse_frequencies[i], for dimensions i and i + half.

    scaling: of the cosine and the sine (YaRN, https://arxiv.org/abs/2309.00071).
    """

    inverse_frequencies: tuple[float, ...]
    scaling: float

    def tables(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [T] -> cosine, sine [T, rotary_dim], fp32."""
        angles = positions.float()[:, None] * torch.tensor(self.inverse_frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.scaling, angles.sin() * self.scaling


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole decoder. embed: name of [vocabulary, hidden]."""

    embed: str
    rotary: Rotary
    layers: tuple[Layer, ...]
    norm: Norm
    head: Projection

    @property
    def layouts(self) -> tuple[LayerLayout, ...]:
        return tuple(layer.layout for layer in self.layers)


def take_apart(model: Any, layouts: tuple[LayerLayout, ...]) -> Recipe | None:
    """The recipe of a transformers model, or None if its parts are not exactly those known here."""
    if _children(model) != _MODEL or _children(model.model) != _BODY or model.dtype != torch.float32:
        return None
    reader = _Reader(model)
    body = model.model
    layers = [reader.layer(layer, layout) for layer, layout in zip(body.layers, layouts, strict=True)]
    known = tuple(layer for layer in layers if layer is not None)
    norm, rotary = reader.norm(body.norm), _rotary(body.rotary_emb, model.config.max_position_embeddings)
    if norm is None or rotary is None or len(known) < len(layers):
        return None
    return Recipe(reader.names[body.embed_tokens.weight], rotary, known, norm, reader.projection(model.lm_head))


class _Reader:
    """names: of every parameter; of one that several modules share, the first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.names = {parameter: name for name, parameter in model.named_parameters()}

    def layer(self, layer: Any, layout: LayerLayout) -> Layer | None:
        if _children(layer) != _LAYER or _children(layer.mlp) != _MLP:
            return None
        attention, mlp = layer.self_attn, layer.mlp
        extra = _children(attention) - _ATTENTION
        input_norm, mlp_norm = self.norm(layer.input_layernorm), self.norm(layer.post_attention_layernorm)
        if (
            extra not in (set(), _HEAD_NORMS)
            or input_norm is None
            or mlp_norm is None
            or "SiLU" not in type(mlp.act_fn).__name__
            or layout.head_dim != layout.value_head_dim
        ):
            return None
        head_norms = None
        if extra:
            q_norm, k_norm = self.norm(attention.q_norm), self.norm(attention.k_norm)
            if q_norm is None or k_norm is None or attention.q_norm.weight.shape != (layout.head_dim,):
                return None
            head_norms = (q_norm, k_norm)
        return Layer(
            layout=layout,
            input_norm=input_norm,
            qkv=tuple(map(self.projection, (attention.q_proj, attention.k_proj, attention.v_proj))),
            head_norms=head_norms,
            rotates=bool(getattr(attention, "use_rope", True)),
            output=self.projection(attention.o_proj),
            mlp_norm=mlp_norm,
            gate_up=tuple(map(self.projection, (mlp.gate_proj, mlp.up_proj))),
            down=self.projection(mlp.down_proj),
        )

    def norm(self, module: Any) -> Norm | None:
        epsilon = getattr(module, "variance_epsilon", None)
        if "RMSNorm" not in type(module).__name__ or epsilon is None:
            return None
        return Norm(self.names[module.weight], float(epsilon))

    def projection(self, module: Any) -> Projection:
        return Projection(self.names[module.weight], None if module.bias is None else self.names[module.bias])


def _rotary(module: Any, length: int) -> Rotary | None:
    """None if the module's tables are not those of a `Rotary`, looked at near both ends of the model's context."""
    frequencies = getattr(module, "inv_freq", None)
    if not isinstance(frequencies, torch.Tensor) or frequencies.dim() != 1:
        return None
    rotary = Rotary(tuple(frequencies.tolist()), float(getattr(module, "attention_scaling", 1.0)))
    positions = torch.tensor([0, 1, 17, length // 2, length - 1])
    wanted = module(torch.zeros(1), positions[None])
    same = all(torch.equal(ours, table[0]) for ours, table in zip(rotary.tables(positions), wanted, strict=True))
    return rotary if same else None


def _children(module: torch.nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
