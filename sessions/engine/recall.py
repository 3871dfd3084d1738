"""What measuring a model found, kept so that the next start need not import the model's own code.

    <cache>/measured/<key>.safetensors    token_ids [n], logits [n, vocabulary]: the check's text, and what the model's
                                          own attention says of it
                                          metadata: the recipe of the lean forward and the context length, as JSON

The key binds the weights, their config and the versions of torch and transformers. A file is a hint: the lean forward
that is made of it must pass the check against its logits, or the model is measured anew. It appears whole, by a rename.
"""

import tempfile
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sessions.engine.check import Text
from sessions.engine.fused import Weights
from sessions.engine.recipe import Recipe

VERSION: Final = 1
"""Of the recipe's meaning and of the check's text."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """max_model_len: in tokens."""

    recipe: Recipe
    text: Text
    max_model_len: int


class _Note(msgspec.Struct, frozen=True):
    recipe: Recipe
    max_model_len: int


def recall_path(cache_dir: Path, fingerprint: str, config_digest: str) -> Path:
    """Where this model is kept."""
    parts = (str(VERSION), fingerprint, config_digest, version("torch"), version("transformers"))
    return cache_dir / "measured" / f"{sha256(' '.join(parts).encode()).hexdigest()[:32]}.safetensors"


def recall(path: Path) -> Recalled | None:
    """None if nothing usable is kept."""
    try:
        with safe_open(path, "pt") as file:
            note = msgspec.json.decode(file.metadata()["note"], type=_Note)
            text = Text(file.get_tensor("token_ids"), file.get_tensor("logits"))
    except (OSError, SafetensorError, KeyError, TypeError, msgspec.MsgspecError):
        return None
    return Recalled(note.recipe, text, note.max_model_len)


def remember(path: Path, recalled: Recalled) -> None:
    """Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    note = msgspec.json.encode(_Note(recalled.recipe, recalled.max_model_len)).decode()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        save_file({"token_ids": recalled.text.token_ids, "logits": recalled.text.logits}, draft, {"note": note})
        draft.replace(path)


def weights_of(folder: Path) -> Weights:
    """A weight of a folder's safetensors by its name, fp32; mapped, not read, if it is stored so.

    Raises KeyError for a name that is not there, OSError or SafetensorError for a file that is damaged.
    """
    file_of: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file: Any = safe_open(path, "pt")
        file_of |= dict.fromkeys(file.keys(), file)

    def weight(name: str) -> torch.Tensor:
        tensor: torch.Tensor = file_of[name].get_tensor(name)
        return tensor.float()

    return weight
