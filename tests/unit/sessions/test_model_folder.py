"""model_folder: where a model comes from, what a fingerprint sees, a conversion whole or not there at all."""

import json
import struct
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from sessions import gguf as gguf_module
from sessions.errors import ModelRefused
from sessions.gguf import converted_folder
from sessions.model_folder import DEFAULT_NAME, config_digest, resolve_model, weights_fingerprint

RESOLVE = """
import sys, pathlib
from sessions.model_folder import resolve_model
folder = resolve_model(sys.argv[1], pathlib.Path(sys.argv[2]), print)
assert not {"torch", "transformers"} & set(sys.modules), "a heavy import"
print(folder.fingerprint)
"""


def write_safetensors(file: Path, tensors: dict[str, bytes]) -> None:
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + b"".join(tensors.values()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "some-model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama", "hidden_size": 8, "transformers_version": "5"}')
    write_safetensors(path / "model.safetensors", {"a": bytes(50_000), "b": b"x" * 100, "empty": b""})
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of one layer and 1,000 weights, with a byte-level BPE of ten tokens."""
    file = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(10)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdef", "ab"])
    writer.add_token_types([3, 3, 3, *[1] * 7])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (10, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {
        "blk.0.attn_q": (8, 8),
        "blk.0.attn_k": (4, 8),
        "blk.0.attn_v": (4, 8),
        "blk.0.attn_output": (8, 8),
    }
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    values = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", values.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_local_folder_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    reports: list[str] = []
    model = resolve_model(str(folder), tmp_path, reports.append)
    assert (model.path, model.name, model.fingerprint) == (folder, "some-model", weights_fingerprint(folder))
    assert reports == []


def test_the_fingerprint_sees_every_tensor_and_not_the_time(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = weights_fingerprint(folder)
    file.touch()
    (folder / "README.md").write_text("x")
    assert weights_fingerprint(folder) == before
    size = file.stat().st_size
    for from_end in (1, 100, 101, 25_100, 50_100):  # b's end, b's start; a's end, middle and start
        changed = bytearray(file.read_bytes())
        changed[size - from_end] ^= 1
        file.write_bytes(changed)
        assert weights_fingerprint(folder) != before
        before = weights_fingerprint(folder)
    file.rename(folder / "other.safetensors")
    assert weights_fingerprint(folder) != before


def test_a_large_folder_is_fingerprinted_in_no_time(folder: Path) -> None:
    """16 GB as a sparse file: reading it all would take seconds even from memory."""
    size = 1 << 30
    header = {
        f"t{at}": {"dtype": "U8", "shape": [size], "data_offsets": [at * size, (at + 1) * size]} for at in range(16)
    }
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.truncate(8 + len(encoded) + 16 * size)
    started_at = time.monotonic()
    weights_fingerprint(folder)
    assert time.monotonic() - started_at < 2


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: b"", lambda data: b"x" * 99]
)
def test_damaged_weights_are_refused(folder: Path, damage: Any) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelRefused, match="not a whole safetensors file"):
        weights_fingerprint(folder)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelRefused, match="pickled weights are not loaded"):
        resolve_model(str(folder), tmp_path, print)


@pytest.mark.parametrize("spec", ["./no-such", "/no/such/folder", "~/no-such-folder", "no-such.gguf"])
def test_what_is_not_there_is_refused(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="There is no f"):
        resolve_model(spec, tmp_path, print)


def test_a_folder_without_config_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelRefused, match=r"no config\.json"):
        resolve_model(str(folder), tmp_path, print)


def test_the_config_digest_is_about_kv(folder: Path) -> None:
    config = folder / "config.json"
    before = config_digest(folder)
    config.write_text('{"hidden_size": 8,  "model_type": "llama", "_name_or_path": "x"}')
    assert config_digest(folder) == before
    config.write_text('{"model_type": "llama", "hidden_size": 9}')
    assert config_digest(folder) != before


@pytest.mark.parametrize(
    ("spec", "sentence"), [("a b c", "neither a folder"), ("nobody/no-such-model", "cannot be reached")]
)
def test_hub_ids_that_cannot_be_had_are_refused(
    spec: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelRefused, match=sentence):
        resolve_model(spec, tmp_path, lambda sentence: None)


def test_a_gguf_is_converted_once(tiny_gguf: Path, tmp_path: Path) -> None:
    reports: list[str] = []
    first = resolve_model(str(tiny_gguf), tmp_path, reports.append)
    assert first.name == "tiny-llama"
    assert reports
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in first.path.iterdir()}
    assert "quantization_config" not in json.loads((first.path / "config.json").read_text())
    written_at = (first.path / "model.safetensors").stat().st_mtime_ns
    again = subprocess.run(
        [sys.executable, "-c", RESOLVE, tiny_gguf, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert again.stdout.split() == [first.fingerprint]
    assert (first.path / "model.safetensors").stat().st_mtime_ns == written_at


def test_a_torn_conversion_is_never_used(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def torn(gguf: Path, folder: Path, report: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        (folder / "stray.safetensors").write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(gguf_module, "_write_folder", torn)
        with pytest.raises(Killed):
            converted_folder(tiny_gguf, tmp_path, print)
    (left,) = (tmp_path / "models").glob("*/")
    assert left.name.endswith(".partial")
    folder = converted_folder(tiny_gguf, tmp_path, lambda sentence: None)
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert not left.exists()


def test_what_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(ModelRefused, match="cannot be converted"):
        converted_folder(tmp_path / "broken.gguf", tmp_path, lambda sentence: None)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_two_processes_convert_once(tiny_gguf: Path, tmp_path: Path) -> None:
    with get_context("spawn").Pool(2) as pool:
        reports = pool.starmap(_convert_in_process, [(tiny_gguf, tmp_path)] * 2)
    assert sorted(bool(sentences) for sentences in reports) == [False, True]


def _convert_in_process(gguf: Path, cache_dir: Path) -> list[str]:
    reports: list[str] = []
    converted_folder(gguf, cache_dir, reports.append)
    return reports


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model(tmp_path: Path) -> None:
    """Bit for bit what transformers reads from the GGUF; and the second start is quick."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from sessions.model_folder import _default_gguf

    model = resolve_model("default", tmp_path, lambda sentence: None)
    started_at = time.monotonic()
    assert resolve_model("default", tmp_path, pytest.fail) == model
    assert time.monotonic() - started_at < 0.3
    assert model.name == DEFAULT_NAME
    gguf = _default_gguf()
    expected = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    weights = load_file(model.path / "model.safetensors")
    assert weights.keys() <= expected.state_dict().keys()
    assert len(weights) == 272
    for name, values in weights.items():
        assert torch.equal(values, expected.state_dict()[name]), name
