"""From a folder of weights to a `LoadedModel` that passed its checks, or a refusal with the reason. At start only.

    first start     transformers' model ─▶ measured (`measure`) ─▶ packed ─▶ checked ─▶ what was found is kept
    later starts    recipe and logits recalled (`recall`) ─▶ lean forward from the weights ─▶ packed ─▶ checked

Both checks are the same one against the same logits: those of the model's own attention. The second way imports nothing
of transformers' models (and with them a good part of torch), which is most of a start.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from sessions.engine.attending import Report, Wanted, kernels_obstacle
from sessions.engine.check import PagedCheck, tolerance
from sessions.engine.fused import FusedDecoder
from sessions.engine.linear import describe_forms
from sessions.engine.loaded import Arithmetic, LoadedModel, LoadOptions, pick_arithmetic
from sessions.engine.native.kernels import Kernels
from sessions.engine.recall import Recalled, recall, remember, weights_of
from sessions.errors import ModelRefused


def load_model(
    folder: Path, options: LoadOptions, kernels: Kernels | None, report: Report, kept: Path | None = None
) -> LoadedModel:
    """Load safetensors weights from a local folder and check the model. Raises ModelRefused with the reason.

    kept: where `recall` finds what an earlier start measured, and this one leaves it; None is nowhere.
    """
    arithmetic = pick_arithmetic(options, stored_dtype(folder), kernels)
    report(
        f"loading weights as {arithmetic.dtype} on {arithmetic.device}, quantization {arithmetic.quantization}, "
        f"KV as {arithmetic.kv_dtype}"
    )
    recalled = recall(kept) if kept else None
    may_be_lean = options.attention in ("auto", "kernels") and can_be_lean(arithmetic)
    if recalled is not None and kernels is not None and may_be_lean:
        try:
            return told(rebuild(folder, recalled, arithmetic, kernels), report)
        except (ModelRefused, KeyError, OSError, SafetensorError) as error:
            report(f"what an earlier start measured does not hold ({error}), measuring anew")
    from sessions.engine.measure import load_and_measure, load_config

    wanted = Wanted(options.attention, options.block_size, report)
    measured = load_and_measure(folder, load_config(folder), arithmetic, kernels, wanted)
    if kept and measured.recipe is not None:
        remember(kept, Recalled(measured.recipe, measured.text, measured.loaded.max_model_len))
    return told(measured.loaded, report)


def told(loaded: LoadedModel, report: Report) -> LoadedModel:
    """`loaded`; says what became of its linears."""
    if loaded.forms:
        report(f"linears packed: {loaded.forms}")
    return loaded


def stored_dtype(folder: Path) -> str | None:
    """The checkpoint's dtype, if its config names one. Raises ModelRefused if that cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        dtype = config.get("dtype") or config.get("torch_dtype")
    except (ValueError, OSError, AttributeError) as error:
        raise ModelRefused(f"{folder.name}: its config.json cannot be read: {error}") from error
    return dtype if isinstance(dtype, str) else None


def can_be_lean(arithmetic: Arithmetic) -> bool:
    """What `FusedDecoder` computes in."""
    return arithmetic.device.type == "cpu" and arithmetic.dtype == torch.float32


@torch.inference_mode()
def rebuild(folder: Path, recalled: Recalled, arithmetic: Arithmetic, kernels: Kernels) -> LoadedModel:
    """The lean forward from its recipe, packed and checked. Raises what `weights_of` raises, and ModelRefused."""
    layers = recalled.recipe.layouts
    if obstacle := kernels_obstacle(arithmetic, layers, kernels):
        raise ModelRefused(obstacle)
    check = PagedCheck(layers, recalled.text, arithmetic.kv_dtype, "kernels", kernels)
    fused = FusedDecoder(recalled.recipe, weights_of(folder), kernels)
    packed = fused.pack(arithmetic.quantization)
    check.run(fused.forward, tolerance(arithmetic))
    return LoadedModel(
        fused.forward, layers, arithmetic, recalled.max_model_len, "kernels", kernels,
        fused=True, build=kernels.build, forms=describe_forms(packed),
    )  # fmt: skip
