"""The checks of `anaphora doctor`, in order. Slow parts come last; reads, and writes what `serve` would write."""

import datetime
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sessions.chat_template import TEMPLATE_DATE
from sessions.doctor.finding import Finding, failure, fine
from sessions.doctor.folders import cache_folder, disk_tier
from sessions.doctor.machine import device, kernels, memory
from sessions.doctor.redis_server import redis_findings
from sessions.doctor.template import date_finding, template_findings
from sessions.doctor.text import tokenizer_findings
from sessions.errors import ModelRefused
from sessions.model_folder import ModelFolder, resolve_model
from sessions.startup import ServiceOptions, load_checked_model
from sessions.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sessions.engine.loaded import LoadedModel


def examine(options: ServiceOptions) -> Iterator[Finding]:
    """Every check in turn, the quick ones first. Raises nothing for what it is there to find."""
    folder = cache_folder(options.cache_dir)
    yield folder
    yield from redis_findings(options)
    yield device(options)
    if folder.verdict == "failure":  # models are converted, and kernels compiled, into it
        return
    yield disk_tier(options.cache_dir, options.disk_size)
    yield kernels(options)
    try:
        model = resolve_model(options.model, options.cache_dir, _silently)
        yield from _text_findings(model)
        loaded = load_checked_model(options, model)
    except ModelRefused as refusal:
        yield failure("model", str(refusal).rstrip("."), "choose a --model that can be served, or install this one.")
        return
    yield _model_finding(model, loaded)
    yield memory(options, loaded)


def _text_findings(model: ModelFolder) -> Iterator[Finding]:
    """Raises ModelRefused for a tokenizer that cannot be used."""
    tokenizer = Tokenizer.load(model.path)
    yield from tokenizer_findings(tokenizer)
    yield from template_findings(tokenizer)
    on_another_day = Tokenizer.load(model.path, today=TEMPLATE_DATE + datetime.timedelta(days=400))
    if dated := date_finding(tokenizer, on_another_day):
        yield dated


def _model_finding(model: ModelFolder, loaded: "LoadedModel") -> Finding:
    """Loading checks it: a text over shuffled blocks must give the logits of the model's own attention."""
    from sessions.engine.check import tolerance

    heads = {layer.num_kv_heads for layer in loaded.layers}
    kv_dtype = str(loaded.kv_dtype).removeprefix("torch.")
    return fine(
        "model",
        f"{model.name}: {len(loaded.layers)} layers x {'/'.join(map(str, sorted(heads)))} KV heads, "
        f"{loaded.max_model_len:,} tokens, weights {loaded.quantization}, KV {kv_dtype}, attention "
        f"{loaded.attention}; "
        f"logits over the block pool within {tolerance(loaded.arithmetic):g} of its own attention's",
    )


def _silently(_: str) -> None:
    """Progress is the command's business."""
