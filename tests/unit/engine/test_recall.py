"""A second start: the lean forward from what the first one kept gives the same bits, and a wrong note is found out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sessions.engine.batch import SEQUENCE, Batch
from sessions.engine.kv_cache import KVCache
from sessions.engine.linear import can_pack
from sessions.engine.loaded import LoadedModel, LoadOptions
from sessions.engine.loader import load_model
from sessions.engine.native.attention import NativeAttention, NativePool
from sessions.engine.native.kernels import Kernels, load_kernels
from sessions.engine.recall import recall, remember
from sessions.errors import ModelRefused
from tests.oracle import SERVED, tiny_model

LEAN = ["llama", "qwen2", "qwen3", "mistral"]
NEW_PROCESS = """
import sys
from pathlib import Path
from sessions.engine.loaded import LoadOptions
from sessions.engine.loader import load_model
from sessions.engine.native.kernels import load_kernels
folder, kept, cache = map(Path, sys.argv[1:])
assert load_model(folder, LoadOptions(device="cpu"), load_kernels(cache)[0], lambda _: None, kept).fused
print(*sorted(name for name in sys.modules if name.split(".")[0] == "transformers"))
"""


@pytest.fixture(scope="module")
def native_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def kernels(native_dir: Path) -> Kernels:
    loaded, reason = load_kernels(native_dir)
    if loaded is None:
        pytest.skip(reason)
    return loaded


class Starts:
    """Starts over one folder of weights. reports: what the last one said."""

    def __init__(self, kind: str, folder: Path, kernels: Kernels) -> None:
        self.folder = folder / "model"
        self.kept = folder / "measured" / "key.safetensors"
        self._kernels = kernels
        self.reports: list[str] = []
        tiny_model(kind, SERVED[kind]).save_pretrained(self.folder)

    def start(self, quantization: str = "none", attention: str = "auto") -> LoadedModel:
        self.reports = []
        options = LoadOptions(device="cpu", dtype="float32", quantization=quantization, attention=attention)
        return load_model(self.folder, options, self._kernels, self.reports.append, self.kept)

    @property
    def measured_anew(self) -> bool:
        return any("measuring anew" in report for report in self.reports)


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    """Of 20 tokens that the check's text does not hold, at positions it does not reach."""
    cache = KVCache(loaded.layers, 8, 8, loaded.kv_dtype, loaded.device)
    table = np.arange(8, dtype=np.int32)
    assert loaded.kernels is not None
    batch = Batch(
        input_ids=torch.arange(3, 23)[None] * 5 % 128,
        positions=torch.arange(40, 60)[None],
        logit_rows=torch.arange(20),
        sequences=np.array([(table.ctypes.data, 0, 0, 20, 0)], SEQUENCE),
        block_tables=(table,),
    )
    return loaded.forward(batch, NativeAttention(NativePool(loaded.kernels, cache, 64), batch))


@pytest.mark.parametrize("quantization", ["none", "file", "fp16", "int8"])
@pytest.mark.parametrize("kind", LEAN)
def test_a_second_start_computes_the_same_bits(kind: str, quantization: str, tmp_path: Path, kernels: Kernels) -> None:
    if quantization in ("file", "fp16") and not can_pack():
        pytest.skip("this build of torch has no packed linears")
    starts = Starts(kind, tmp_path, kernels)
    first, second = starts.start(quantization), starts.start(quantization)
    assert first.fused and not starts.measured_anew
    assert second.numerics == first.numerics
    assert second.layers == first.layers
    assert second.max_model_len == first.max_model_len
    assert torch.equal(logits(second), logits(first))


def test_a_second_start_imports_nothing_of_transformers(tmp_path: Path, kernels: Kernels, native_dir: Path) -> None:
    starts = Starts("llama", tmp_path, kernels)
    starts.start()
    arguments = [str(starts.folder), str(starts.kept), str(native_dir)]
    child = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, *arguments], check=True, capture_output=True, text=True, env=os.environ
    )
    assert child.stdout.split() == []


def test_what_does_not_fit_the_weights_is_measured_anew_and_replaced(tmp_path: Path, kernels: Kernels) -> None:
    starts = Starts("llama", tmp_path, kernels)
    right = logits(starts.start())
    known = recall(starts.kept)
    assert known is not None
    rotary = known.recipe.rotary
    faster = replace(rotary, inverse_frequencies=tuple(2 * value for value in rotary.inverse_frequencies))
    remember(starts.kept, replace(known, recipe=replace(known.recipe, rotary=faster)))
    again = starts.start()
    assert starts.measured_anew
    assert torch.equal(logits(again), right)
    starts.start()
    assert not starts.measured_anew


def test_other_weights_under_the_same_key_are_noticed(tmp_path: Path, kernels: Kernels) -> None:
    starts = Starts("llama", tmp_path, kernels)
    starts.start()
    path = starts.folder / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, path, {"format": "pt"})
    starts.start()
    assert starts.measured_anew


def test_a_missing_weight_is_no_crash(tmp_path: Path, kernels: Kernels) -> None:
    starts = Starts("llama", tmp_path, kernels)
    starts.start()
    known = recall(starts.kept)
    assert known is not None
    remember(starts.kept, replace(known, recipe=replace(known.recipe, embed="no.such.weight")))
    assert starts.start().fused
    assert starts.measured_anew


@pytest.mark.parametrize("content", [b"", b"\x10" * 40, b"\xff" * 8])
def test_a_damaged_file_is_as_good_as_none(content: bytes, tmp_path: Path, kernels: Kernels) -> None:
    starts = Starts("llama", tmp_path, kernels)
    starts.kept.parent.mkdir()
    starts.kept.write_bytes(content)
    assert recall(starts.kept) is None
    assert starts.start().fused
    assert recall(starts.kept) is not None


def test_another_attention_by_name_takes_nothing_from_what_is_kept(tmp_path: Path, kernels: Kernels) -> None:
    """The lean forward attends through the kernels."""
    starts = Starts("llama", tmp_path, kernels)
    assert starts.start().numerics == f"cpu/fused/kernels/{kernels.build}"
    assert starts.start(attention="sdpa").numerics == f"cpu/modules/sdpa/{kernels.build}"
    assert starts.start(attention="kernels").fused and not starts.measured_anew
    with pytest.raises(ModelRefused, match="attention 'flex' cannot be had: it needs a CUDA device"):
        starts.start(attention="flex")


def test_a_model_of_other_parts_leaves_nothing(tmp_path: Path, kernels: Kernels) -> None:
    starts = Starts("olmo2", tmp_path, kernels)
    assert not starts.start().fused
    assert not starts.kept.exists()
