"""GGUF to a model folder, once: safetensors, config, generation config, tokenizer. Owns `<cache>/models`.

    models/<key>.lock      held while converting, so that two processes do not both do it
    models/<key>.partial/  being written; left behind by a crash, deleted by the next attempt
    models/<key>/          renamed into place when every byte is on disk; complete by construction

The key is the GGUF's sha256 and the converter's version. Weights are stored in fp32: a Q4_1 value is d·q + m
in fp16 factors, and in the default model 211 of 272 tensors hold values that fp16 would round.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from sessions.errors import ModelRefused

CONVERTER_VERSION: Final = 1
_KEY_DIGITS: Final = 32


def converted_folder(gguf: Path, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """The folder `gguf` converts to, converting it if nobody has. Safe against crashes and other processes.

    Raises ModelRefused if the file cannot be converted.
    """
    models = cache_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = models / _key(gguf)
    if folder.is_dir():
        return folder
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have finished while we waited
            _convert(gguf, folder, report)
    return folder


def _key(gguf: Path) -> str:
    with gguf.open("rb") as stream:
        return f"{file_digest(stream, 'sha256').hexdigest()[:_KEY_DIGITS]}-{CONVERTER_VERSION}"


def _convert(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    report(f"Converting {gguf.name} to safetensors, once; this takes about 20 s for 100 MB.")
    started_at = time.monotonic()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_folder(gguf, partial, report)
    except Exception as error:  # a foreign file in a third party's parser: anything may come out
        shutil.rmtree(partial, ignore_errors=True)
        raise ModelRefused(f"{gguf.name} cannot be converted: {error}") from error
    for file in partial.iterdir():
        _sync(file)
    partial.replace(folder)
    _sync(folder.parent)
    report(f"Converted {gguf.name} in {time.monotonic() - started_at:.0f} s.")


def _write_folder(gguf: Path, folder: Path, report: Callable[[str], None]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars_were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        report("Reading the weights.")
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # The values are plain fp32 by now, but a model that calls itself quantised refuses to be saved.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        report("Writing the weights.")
        model.save_pretrained(folder)
        report("Converting the tokenizer.")
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    finally:
        if bars_were_on:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _sync(path: Path) -> None:
    """Bytes reach the disk before the rename that publishes them. Windows cannot sync a directory."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
