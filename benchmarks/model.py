"""The model that the micro benchmarks run: its shapes, its weights in one or another arithmetic, random prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from proxy.settings import default_cache_dir
from sessions.engine.linear import Quantization
from sessions.engine.loaded import LoadedModel, LoadOptions
from sessions.engine.loader import load_model
from sessions.engine.native.kernels import Kernels, load_kernels
from sessions.model_folder import resolve_model


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a model is computed. has_kernels: ours, and the lean forward; else torch and the model's modules."""

    name: str
    quantization: Quantization
    kv_dtype: str
    has_kernels: bool


ARITHMETICS = {
    arithmetic.name: arithmetic
    for arithmetic in (
        Arithmetic("torch", "none", "float32", False),
        Arithmetic("fp32", "none", "float32", True),
        Arithmetic("file", "file", "float16", True),
        Arithmetic("fp16", "fp16", "float16", True),
        Arithmetic("int8", "int8", "float16", True),
        Arithmetic("fp16-kv8", "fp16", "int8", True),
        Arithmetic("int8-kv8", "int8", "int8", True),
    )
}


@dataclass(frozen=True, slots=True)
class Shapes:
    """What the benchmarks need of a Llama-like config; sizes in elements."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary: int


def model_folder(model: str) -> Path:
    return resolve_model(model, default_cache_dir(), print).path


def read_shapes(folder: Path) -> Shapes:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return Shapes(
        num_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
    )


def find_kernels() -> Kernels | None:
    """The CPU kernels; says so if there are none."""
    kernels, reason = load_kernels(default_cache_dir())
    if kernels is None:
        print(f"   no CPU kernels: {reason}")
    return kernels


def load_as(folder: Path, arithmetic: Arithmetic, kernels: Kernels | None) -> LoadedModel:
    """Raises ModelRefused where this machine cannot compute like that."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = LoadOptions("cpu", "float32", arithmetic.quantization, arithmetic.kv_dtype)
    return load_model(folder, options, kernels if arithmetic.has_kernels else None, lambda _: None)


class RandomPrompts:
    """Token ids nobody has seen: no two prompts of one run share a block."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._generator = np.random.default_rng(seed)

    def draw(self, num_tokens: int) -> list[int]:
        ids: list[int] = self._generator.integers(100, self._vocabulary - 100, num_tokens).tolist()
        return ids


def describe_torch() -> str:
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def chosen(names: Sequence[str]) -> list[Arithmetic]:
    return [ARITHMETICS[name] for name in names]
