"""From a folder of weights to a `LoadedModel` that passed its checks, or a refusal with the reason. At start only.

A model is measured, not looked up in a list: one probe forward records what KV each layer wants, and a check runs a
short text in shuffled blocks and chunks and compares its logits with the model's own attention. So an architecture
nobody tried either works or says why not. The same check decides whether the lean forward (`fused`) may stand in for
the model's own modules, and guards packed weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sessions.engine.attention import IMPLEMENTATION, LayoutProbe, Receiver
from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.fused import FusedDecoder, take_apart
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.linear import QUANTIZATIONS, Quantization, can_pack, pack_linears
from sessions.engine.native.kernels import Kernels, NativeAttention, NativePool
from sessions.engine.torch_attention import TorchAttention
from sessions.errors import ModelRefused

PROBE_LENGTH = 24
"""Tokens of the load-time check: several blocks of 8, more than one chunk."""

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest error of the check's logits, relative to the largest logit, by compute dtype."""

PACKED_TOLERANCE: dict[Quantization, float] = {"none": 2e-3, "fp16": 1e-2, "int8": 0.1}
"""The same by quantisation: it catches a broken kernel or an overflow, not a loss of quality."""


class Forward(Protocol):
    """Writes the batch's K and V into the pool behind `attention`; returns logits [S, vocabulary]."""

    def __call__(self, batch: Batch, attention: Any) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that passed the checks. `layers` in layer order; `max_model_len` in tokens.

    kernels: the CPU kernels where they can be used. fused: is `forward` the lean one, which needs them?
    """

    forward: Forward
    layers: tuple[LayerLayout, ...]
    dtype: torch.dtype
    device: torch.device
    max_model_len: int
    kv_dtype: torch.dtype
    quantization: Quantization = "none"
    kernels: Kernels | None = None
    fused: bool = False

    @property
    def numerics(self) -> str:
        """Names the arithmetic, for the root of the hash chain: KV of another one is not the same KV."""
        attention = "kernels" if self.kernels else "sdpa"
        return f"{self.device.type}/{'fused' if self.fused else 'modules'}/{attention}"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """device: auto, cpu, cuda. dtype, kv_dtype: auto or torch's name. quantization: auto or `linear.QUANTIZATIONS`."""

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    kv_dtype: str = "auto"


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelRefused for a device that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelRefused("device 'cuda' was asked for, but torch sees no CUDA device")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device, config: PreTrainedConfig) -> torch.dtype:
    """`auto` is float32 on CPU, where it is exact and fast, and the checkpoint's own dtype elsewhere."""
    if dtype == "auto":
        stored = getattr(config, "dtype", None)
        return torch.float32 if device.type == "cpu" or not isinstance(stored, torch.dtype) else stored
    picked = getattr(torch, dtype)
    assert isinstance(picked, torch.dtype)
    return picked


def pick_quantization(
    quantization: str, device: torch.device, dtype: torch.dtype, kernels: Kernels | None
) -> Quantization:
    """`auto` is fp16 where the CPU's packed kernels are, none elsewhere. Raises ModelRefused where they are not."""
    packs = device.type == "cpu" and dtype == torch.float32
    if quantization == "auto":
        return "fp16" if packs and can_pack() else "none"
    if quantization == "fp16" and not (packs and can_pack()):
        raise ModelRefused("quantization 'fp16' needs an x86 CPU and dtype float32")
    if quantization == "int8" and not (packs and kernels):
        raise ModelRefused("quantization 'int8' needs a CPU, dtype float32, and the CPU kernels")
    picked: Quantization = QUANTIZATIONS[QUANTIZATIONS.index(quantization)]
    return picked


def pick_kv_dtype(kv_dtype: str, dtype: torch.dtype, quantization: Quantization) -> torch.dtype:
    """`auto` is float16 beside packed weights, whose rounding is as large, and the model's own dtype otherwise."""
    if kv_dtype == "auto":
        return dtype if quantization == "none" else torch.float16
    picked = getattr(torch, kv_dtype)
    assert isinstance(picked, torch.dtype)
    return picked


def load_model(
    folder: Path, options: LoadOptions, kernels: Kernels | None, report: Callable[[str], None]
) -> LoadedModel:
    """Load safetensors weights from a local folder and check the model. Raises ModelRefused with the reason."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{folder.name}: {error}") from error
    refuse_by_config(config)
    target = pick_device(options.device)
    torch_dtype = pick_dtype(options.dtype, target, config)
    quantization = pick_quantization(options.quantization, target, torch_dtype, kernels)
    kv_dtype = pick_kv_dtype(options.kv_dtype, torch_dtype, quantization)
    report(f"loading weights as {torch_dtype} on {target}, quantization {quantization}, KV as {kv_dtype}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch_dtype, local_files_only=True, use_safetensors=True
        )
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{config.model_type}: {error}") from error
    # Any: transformers wraps `to` and `eval` in ways that hide torch's signatures from the type checker.
    movable: Any = model
    return prepare_model(movable.to(target).eval(), kernels, quantization, kv_dtype)


@torch.inference_mode()
def prepare_model(
    model: PreTrainedModel,
    kernels: Kernels | None = None,
    quantization: Quantization = "none",
    kv_dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Switch a model to the paged attention, pack it and check it. Raises ModelRefused. Consumes `model`."""
    config = model.config.get_text_config()
    refuse_by_config(config)
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelRefused(f"{config.model_type}: its attention does not go through transformers' AttentionInterface")
    token_ids = torch.arange(PROBE_LENGTH, device=model.device)[None] * 7 % config.vocab_size
    wanted = model(input_ids=token_ids, use_cache=False).logits[0]
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        layers = probe_layout(model)
        check = PagedCheck(layers, token_ids[0], wanted, model.dtype, kernels)
        fused = check.fused(model)
        forward: Forward = own_forward(model) if fused is None else fused.forward
        if fused is None:
            check.run(forward, TOLERANCE.get(model.dtype, 8e-2))
        kv_dtype = kv_dtype or model.dtype
        if quantization != "none" or kv_dtype != model.dtype:
            pack_linears(model, quantization, kernels) if fused is None else fused.pack(quantization)
            tolerance = max(PACKED_TOLERANCE[quantization], TOLERANCE.get(model.dtype, 8e-2), TOLERANCE[kv_dtype])
            PagedCheck(layers, token_ids[0], wanted, kv_dtype, check.kernels).run(forward, tolerance)
    except ModelRefused as refusal:
        raise ModelRefused(f"{config.model_type}: {refusal}") from refusal
    return LoadedModel(
        forward,
        layers,
        model.dtype,
        model.device,
        context_length(config),
        kv_dtype,
        quantization,
        check.kernels,
        fused is not None,
    )


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


class PagedCheck:
    """Runs `token_ids` [n] in shuffled blocks of 8, in chunks and one by one; compares with `wanted` [n, vocabulary].

    kernels: those given, or None if their limits do not hold for this model.
    """

    def __init__(
        self,
        layers: tuple[LayerLayout, ...],
        token_ids: torch.Tensor,
        wanted: torch.Tensor,
        dtype: torch.dtype,
        kernels: Kernels | None,
    ) -> None:
        self._token_ids = token_ids
        self._wanted = wanted.float()
        self._layers = layers
        num_blocks = -(-len(token_ids) // 8)
        self._cache = KVCache(layers, num_blocks, 8, dtype, token_ids.device)
        self._table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).to(torch.int32).numpy()
        self.kernels = kernels if kernels is not None and kernels.can_attend(self._cache) else None
        self._pool = NativePool(self.kernels, self._cache, len(token_ids)) if self.kernels else None

    def fused(self, model: PreTrainedModel) -> FusedDecoder | None:
        """The lean forward, if the model's parts are known and it agrees with the model's own."""
        fused = take_apart(model, self._layers, self.kernels) if self.kernels else None
        if fused is None:
            return None
        try:
            self.run(fused.forward, TOLERANCE[torch.float32])
        except ModelRefused:
            return None
        return fused

    def run(self, forward: Forward, tolerance: float) -> None:
        """Raises ModelRefused when the logits differ by more than `tolerance` of the largest."""
        num_tokens = len(self._token_ids)
        got: list[torch.Tensor] = []
        for start, end in pairwise([0, 10, num_tokens - 2, num_tokens - 1, num_tokens]):
            batch = self._batch(start, end)
            attention = NativeAttention(self._pool, batch) if self._pool else TorchAttention(batch, self._cache)
            got.append(forward(batch, attention))
        error = (torch.cat(got).float() - self._wanted).abs().max() / self._wanted.abs().max().clamp(min=1e-6)
        if not error.item() <= tolerance:
            raise ModelRefused(f"over the block pool its logits differ from its own attention by {error.item():.1e}")

    def _batch(self, start: int, end: int) -> Batch:
        device = self._token_ids.device
        return Batch(
            input_ids=self._token_ids[None, start:end],
            positions=torch.arange(start, end, device=device)[None],
            logit_rows=torch.arange(end - start, device=device),
            sequences=np.array([(self._table.ctypes.data, 0, start, end - start, 0)], SEQUENCE),
            block_tables=(self._table,),
        )
