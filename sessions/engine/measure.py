"""From a transformers model to a `LoadedModel` that passed its checks, or a refusal with the reason. At start only.

A model is measured, not looked up in a list: one probe forward records what KV each layer wants, and the check
compares the logits of a short text over the block pool with the model's own attention. So an architecture nobody tried
either works or says why not. The same check decides whether the lean forward (`fused`) may stand in for the model's
own modules, and guards packed weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sessions.engine.attending import Wanted, candidates, flex_failure
from sessions.engine.attention import Receiver
from sessions.engine.batch import Batch
from sessions.engine.check import LENGTH, TOLERANCE, PagedCheck, Text, tolerance
from sessions.engine.fused import FusedDecoder
from sessions.engine.interface import IMPLEMENTATION, LayoutProbe
from sessions.engine.kv_cache import LayerLayout
from sessions.engine.linear import Linear, Quantization, describe_forms
from sessions.engine.loaded import Arithmetic, Forward, LoadedModel
from sessions.engine.native.kernels import Kernels
from sessions.engine.recipe import Recipe, take_apart
from sessions.errors import ModelRefused


@dataclass(frozen=True, slots=True)
class Measured:
    """text: the check's, with the model's own logits. recipe: of the lean forward, if that is what was loaded."""

    loaded: LoadedModel
    text: Text
    recipe: Recipe | None


def load_config(folder: Path) -> PreTrainedConfig:
    """Raises ModelRefused for an architecture that transformers does not know, or whose KV cannot be kept."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{folder.name}: {error}") from error
    refuse_by_config(config)
    return config


def load_and_measure(
    folder: Path, config: PreTrainedConfig, arithmetic: Arithmetic, kernels: Kernels | None, wanted: Wanted
) -> Measured:
    """Load safetensors weights from a local folder and check the model. Raises ModelRefused with the reason."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=arithmetic.dtype, local_files_only=True, use_safetensors=True
        )
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{config.model_type}: {error}") from error
    # Any: transformers wraps `to` and `eval` in ways that hide torch's signatures from the type checker.
    movable: Any = model
    return measure(movable.to(arithmetic.device).eval(), arithmetic, kernels, wanted)


def prepare_model(
    model: PreTrainedModel,
    kernels: Kernels | None = None,
    quantization: Quantization = "none",
    kv_dtype: torch.dtype | None = None,
    wanted: Wanted | None = None,
) -> LoadedModel:
    """`measure` for a model at hand, where it is and in its own dtype."""
    arithmetic = Arithmetic(model.device, model.dtype, quantization, kv_dtype or model.dtype)
    return measure(model, arithmetic, kernels, wanted or Wanted()).loaded


@torch.inference_mode()
def measure(model: PreTrainedModel, arithmetic: Arithmetic, kernels: Kernels | None, wanted: Wanted) -> Measured:
    """Switch a model to the paged attention, pack it and check it. Raises ModelRefused. Consumes `model`."""
    config = model.config.get_text_config()
    refuse_by_config(config)
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelRefused(f"{config.model_type}: its attention does not go through transformers' AttentionInterface")
    token_ids = torch.arange(LENGTH, device=model.device) * 7 % config.vocab_size
    text = Text(token_ids, model(input_ids=token_ids[None], use_cache=False).logits[0].float())
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        measured = _checked(model, arithmetic, kernels, text, wanted)
    except ModelRefused as refusal:
        raise ModelRefused(f"{config.model_type}: {refusal}") from refusal
    return replace(measured, loaded=replace(measured.loaded, build=kernels.build if kernels else ""))


def _checked(
    model: PreTrainedModel, arithmetic: Arithmetic, kernels: Kernels | None, text: Text, wanted: Wanted
) -> Measured:
    """With the first attention that passes. Raises ModelRefused if none does."""
    layers = probe_layout(model)
    *first, last = candidates(wanted, arithmetic, layers, kernels)
    length = context_length(model.config.get_text_config())
    for kind in first:
        loaded = LoadedModel(own_forward(model), layers, arithmetic, length, kind)
        try:
            return _attending(model, loaded, kernels, text)
        except ModelRefused as refusal:
            wanted.report(f"attention '{last}' instead of '{kind}': {refusal}")
    return _attending(model, LoadedModel(own_forward(model), layers, arithmetic, length, last), kernels, text)


def _attending(model: PreTrainedModel, loaded: LoadedModel, kernels: Kernels | None, text: Text) -> Measured:
    """With the attention that `loaded` names. Raises ModelRefused for logits that are not the model's own."""
    layers, arithmetic, kind = loaded.layers, loaded.arithmetic, loaded.attention
    recipe, fused = None, None
    if kind == "kernels":
        assert kernels is not None
        loaded = replace(loaded, kernels=kernels)
        recipe, fused = lean_forward(model, layers, PagedCheck(layers, text, model.dtype, kind, kernels), kernels)
    if fused is None:
        _run_check(PagedCheck(layers, text, model.dtype, kind, kernels), loaded, TOLERANCE.get(model.dtype, 8e-2))
        packed = pack_linears(model, arithmetic.quantization, kernels)
    else:
        loaded = replace(loaded, forward=fused.forward, fused=True)
        packed = fused.pack(arithmetic.quantization)
    if arithmetic.quantization != "none" or arithmetic.kv_dtype != model.dtype:
        check = PagedCheck(layers, text, arithmetic.kv_dtype, kind, kernels)
        check.run(loaded.forward, tolerance(arithmetic))
    return Measured(replace(loaded, forms=describe_forms(packed)), text, recipe)


def _run_check(check: PagedCheck, loaded: LoadedModel, limit: float) -> None:
    """Raises ModelRefused, also for whatever FlexAttention's compiler or its kernels raise."""
    try:
        check.run(loaded.forward, limit)
    except ModelRefused:
        raise
    except Exception as error:
        if loaded.attention != "flex":
            raise
        raise ModelRefused(flex_failure(error)) from error


def lean_forward(
    model: PreTrainedModel, layers: tuple[LayerLayout, ...], check: PagedCheck, kernels: Kernels
) -> tuple[Recipe, FusedDecoder] | tuple[None, None]:
    """The lean forward, if the model's parts are known and it agrees with the model's own."""
    recipe = take_apart(model, layers)
    if recipe is None:
        return None, None
    weights = dict(model.named_parameters())
    fused = FusedDecoder(recipe, lambda name: weights[name].detach(), kernels)
    try:
        check.run(fused.forward, TOLERANCE[torch.float32])
    except ModelRefused:
        return None, None
    return recipe, fused


def own_forward(model: PreTrainedModel) -> Forward:
    """The model's own modules over a packed batch."""

    def forward(batch: Batch, attention: Receiver) -> torch.Tensor:
        # A model needs at least one row of logits to be shaped right; nobody reads it when nothing is sampled.
        rows = batch.logit_rows if len(batch.logit_rows) else batch.logit_rows.new_zeros(1)
        output = model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=rows,
            paged=attention,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    return forward


def pack_linears(model: torch.nn.Module, quantization: Quantization, kernels: Kernels | None) -> list[Linear]:
    """Swap every linear layer of a model for a packed one, in place. Returns those."""
    swapped: list[Linear] = []
    if quantization == "none":
        return swapped
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear | Conv1D):
                weight = child.weight.t() if isinstance(child, Conv1D) else child.weight
                packed = Linear([(weight, child.bias)])
                packed.pack(quantization, kernels)
                setattr(module, name, packed)
                swapped.append(packed)
    return swapped


def refuse_by_config(config: PreTrainedConfig) -> None:
    """Refuse what a short check cannot see: KV that depends on more than the tokens before it."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope_kinds = {rope.get("rope_type")} | {
        inner.get("rope_type") for inner in rope.values() if isinstance(inner, dict)
    }
    if "dynamic" in rope_kinds:
        raise ModelRefused(f"{config.model_type}: dynamic-NTK RoPE makes a token's KV depend on the final length")
    linear = {
        kind for kind in getattr(config, "layer_types", None) or () if "attention" not in kind or "linear" in kind
    }
    if linear:
        raise ModelRefused(f"{config.model_type}: recurrent or linear layers ({', '.join(sorted(linear))}) keep no KV")


def context_length(config: PreTrainedConfig) -> int:
    """Tokens the model was made for. Long-RoPE switches its frequencies past the original length: stay below it."""
    rope = getattr(config, "rope_parameters", None) or {}
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    if rope.get("rope_type") == "longrope":
        length = min(length, rope.get("original_max_position_embeddings", length))
    return int(length)


def probe_layout(model: PreTrainedModel) -> tuple[LayerLayout, ...]:
    """What KV each layer wants, from a forward of two tokens. Raises ModelRefused if a layer keeps state elsewhere."""
    probe = LayoutProbe()
    device = model.device
    model(
        input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device),
        position_ids=torch.arange(2, device=device)[None],
        use_cache=False,
        paged=probe,
    )
    num_layers = model.config.get_text_config().num_hidden_layers
    if sorted(probe.layers) != list(range(num_layers)):
        raise ModelRefused(
            f"only {len(probe.layers)} of its {num_layers} layers ask for attention through AttentionInterface"
        )
    return tuple(probe.layers[index] for index in range(num_layers))
