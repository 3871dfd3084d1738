"""ModelRunner: loads the model and does all device work of a step: copies, forward, sampling. Engine thread after load.

At load the model is measured, not looked up in a list: one probe forward records what KV each layer wants, and a
second check runs a short text in shuffled blocks and chunks and compares its logits with the model's own attention.
A model that does not pass is refused with the reason; so an architecture nobody tried either works or says why not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sessions.engine.attention import IMPLEMENTATION, LayoutProbe, PagedAttention
from sessions.engine.batch import Batch, Chunk, build_batch
from sessions.engine.kv_cache import KVCache, LayerLayout
from sessions.engine.sampler import sample
from sessions.engine.schedule import Schedule
from sessions.errors import ModelRefused

PROBE_LENGTH = 24
"""Tokens of the load-time check; more than one chunk and several blocks of 4."""

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}
"""Largest error of the check's logits, relative to the largest logit, by compute dtype."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that passed the checks. `layers` in layer order; `max_model_len` in tokens."""

    model: PreTrainedModel
    layers: tuple[LayerLayout, ...]
    dtype: torch.dtype
    device: torch.device
    max_model_len: int


class ModelRunner:
    """`execute` is the only thing the engine calls."""

    def __init__(self, loaded: LoadedModel, cache: KVCache) -> None:
        self._loaded = loaded
        self._cache = cache

    @torch.inference_mode()
    def execute(self, schedule: Schedule) -> list[int]:
        """See `loop.Runner`. Raises what torch raises, out of memory included."""
        self._cache.copy_blocks(
            [source.id for source, _ in schedule.copies], [destination.id for _, destination in schedule.copies]
        )
        if not schedule.entries:
            return []
        batch = build_batch(schedule.entries, self._cache.block_size, self._loaded.device)
        logits = forward(self._loaded.model, batch, self._cache)
        token_ids = sample(logits, batch.sampled) if batch.sampled else []
        ordered = [0] * len(token_ids)
        for place, token_id in zip(batch.sampled_order, token_ids, strict=True):
            ordered[place] = token_id
        return ordered


def forward(model: PreTrainedModel, batch: Batch, cache: KVCache) -> torch.Tensor:
    """One packed forward. Writes the batch's K and V into `cache`; returns logits [S, vocabulary]."""
    # A model needs at least one row of logits to be shaped right; nobody reads it when nothing is sampled.
    rows = batch.logit_rows if len(batch.logit_rows) else batch.slot_mapping.new_zeros(1)
    output = model(
        input_ids=batch.input_ids,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=rows,
        paged=PagedAttention(batch, cache),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


# -- loading --


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


def load_model(folder: Path, device: str, dtype: str, report: Callable[[str], None]) -> LoadedModel:
    """Load safetensors weights from a local folder and check the model. Raises ModelRefused with the reason."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{folder.name}: {error}") from error
    refuse_by_config(config)
    target = pick_device(device)
    torch_dtype = pick_dtype(dtype, target, config)
    report(f"loading weights as {torch_dtype} on {target}")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch_dtype, local_files_only=True, use_safetensors=True
        )
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{config.model_type}: {error}") from error
    # Any: transformers wraps `to` and `eval` in ways that hide torch's signatures from the type checker.
    movable: Any = model
    return prepare_model(movable.to(target).eval())


def prepare_model(model: PreTrainedModel) -> LoadedModel:
    """Switch a model to the paged attention and check it. Raises ModelRefused. Mutates `model`."""
    config = model.config.get_text_config()
    refuse_by_config(config)
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelRefused(f"{config.model_type}: its attention does not go through transformers' AttentionInterface")
    with torch.inference_mode():
        token_ids = torch.arange(PROBE_LENGTH, device=model.device)[None] * 7 % config.vocab_size
        wanted = model(input_ids=token_ids, use_cache=False).logits[0]
        model.set_attn_implementation(IMPLEMENTATION)
        try:
            layers = probe_layout(model)
            check_paged(model, layers, token_ids[0], wanted)
        except ModelRefused as refusal:
            raise ModelRefused(f"{config.model_type}: {refusal}") from refusal
    return LoadedModel(model, layers, model.dtype, model.device, context_length(config))


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


def check_paged(
    model: PreTrainedModel, layers: tuple[LayerLayout, ...], token_ids: torch.Tensor, wanted: torch.Tensor
) -> None:
    """Run `token_ids` [n] in shuffled blocks of 4, in chunks and single tokens; compare with `wanted` [n, vocabulary].

    Raises ModelRefused when the logits differ by more than rounding.
    """
    device, block_size = model.device, 4
    num_tokens = len(token_ids)
    num_blocks = -(-num_tokens // block_size)
    cache = KVCache(layers, num_blocks, block_size, model.dtype, device)
    generator = torch.Generator().manual_seed(0)
    slots = torch.cat([torch.arange(4) + 4 * block for block in torch.randperm(num_blocks, generator=generator)])
    slots = slots[:num_tokens].to(device)
    got: list[torch.Tensor] = []
    bounds = [0, 10, num_tokens - 3, num_tokens - 2, num_tokens - 1, num_tokens]
    for start, end in pairwise(bounds):
        got.append(forward(model, _check_batch(token_ids, slots, start, end), cache))
    error = (torch.cat(got).float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-6)
    if not error.item() <= TOLERANCE.get(model.dtype, 8e-2):
        raise ModelRefused(f"over the block pool its logits differ from its own attention by {error.item():.1e}")


def _check_batch(token_ids: torch.Tensor, slots: torch.Tensor, start: int, end: int) -> Batch:
    single = end - start == 1
    nothing = slots.new_zeros(0)
    fields: dict[str, Any] = {
        "decode_slots": slots[None, :end] if single else slots.new_zeros(0, 0),
        "decode_lengths": slots.new_tensor([end]) if single else nothing,
        "chunks": () if single else (Chunk(0, end - start, start, slots[:end]),),
    }
    return Batch(
        input_ids=token_ids[None, start:end],
        positions=torch.arange(start, end, device=slots.device)[None],
        slot_mapping=slots[start:end],
        logit_rows=torch.arange(end - start, device=slots.device),
        sampled=(),
        sampled_order=(),
        **fields,
    )
