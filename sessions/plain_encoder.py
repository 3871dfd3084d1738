"""PlainEncoder: plain text to token ids with control tokens switched off, through a bounded cache.

Threads: any may call `encode`; only the cache is locked, and texts that take long are encoded without the GIL, so
the event loop and the engine go on meanwhile.
"""

import json
import secrets
import sys
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any, Final

from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel

from sessions.control_tokens import ControlTokens
from sessions.errors import InvalidRequest
from sessions.types import TokenId

CACHE_BYTES: Final = 64 << 20
_LONG_TEXT: Final = 4096
"""Characters, about 5 ms: past this, handing the GIL over costs less than keeping it."""
_PIECES_AT_ONCE: Final = 1024
_MOST_JOINED: Final = {"NFC": 4}
"""Characters that a normaliser makes one of, at most (https://www.unicode.org/faq/normalization.html#12)."""


class TooManyTokensError(Exception):
    """The text has at least `num_tokens`, more than there is room for."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens


class PlainEncoder:
    """Made of a tokenizer's own JSON. The cache is least recently used out first."""

    def __init__(self, backend_json: dict[str, Any], control_tokens: ControlTokens) -> None:
        self._control_tokens = control_tokens
        self._never_spelt = control_tokens.ids - _spelling_ids(backend_json)
        self._bound = _token_bound(backend_json, control_tokens)
        self._first = _plain_backend(backend_json, control_tokens)
        self._later = _plain_backend(_without_prefix_space(backend_json), control_tokens)
        self._lock = Lock()
        self._cache: OrderedDict[tuple[str, bool, str], array[int]] = OrderedDict()
        self._cached_bytes = 0

    def encode(self, text: str, *, first: bool, scope: str, room: int = sys.maxsize) -> Sequence[TokenId]:
        """first: `text` opens the prompt, where some tokenizers put a prefix space.

        Raises TooManyTokensError rather than work on once it is certain that there are `room` tokens or more.
        """
        if not text:
            return ()
        if self._bound is not None and (fewest := self._bound.fewest_tokens(text)) >= room:
            raise TooManyTokensError(fewest)
        key = (scope, first, text)
        with self._lock:
            cached = self._cache.get(key)
            if cached is not None:
                self._cache.move_to_end(key)
        if cached is None:
            cached = array("I", self._encode(text, self._first if first else self._later, room))
            with self._lock:
                self._keep(key, cached)
        return cached  # type: ignore[return-value]  # array[int] holds TokenIds

    def _keep(self, key: tuple[str, bool, str], ids: "array[int]") -> None:
        """Under the lock. Another thread may have encoded the same text meanwhile."""
        replaced = self._cache.pop(key, None)
        if replaced is not None:
            self._cached_bytes -= _entry_bytes(key[2], replaced)
        self._cache[key] = ids
        self._cached_bytes += _entry_bytes(key[2], ids)
        while self._cached_bytes > CACHE_BYTES and self._cache:
            (_, _, evicted_text), evicted = self._cache.popitem(last=False)
            self._cached_bytes -= _entry_bytes(evicted_text, evicted)

    def _encode(self, text: str, backend: Backend, room: int) -> list[int]:
        """A vocabulary may hold a control token's text as an ordinary piece (Unigram's `</s>`), and a
        normaliser may make it of other text (NFKC, of full-width brackets). Then the text is cut smaller.
        """
        for pieces in ([text], self._control_tokens.break_up(text), text):
            ids = self._encode_pieces(pieces, backend, room)
            if ids is not None:
                return ids
        raise InvalidRequest("A text cannot be written without a control token.", param="messages")

    def _encode_pieces(self, pieces: Sequence[str], backend: Backend, room: int) -> list[int] | None:
        """None if a control token is among the ids."""
        ids: list[int] = []
        for start, end in pairwise([0, *range(1, len(pieces), _PIECES_AT_ONCE), len(pieces)]):
            if len(ids) >= room:
                raise TooManyTokensError(len(ids))
            more = _encoded(self._later if start else backend, list(pieces[start:end]))
            if not self._never_spelt.isdisjoint(more):
                return None
            ids += more
        return ids


def _encoded(backend: Backend, pieces: list[str]) -> list[int]:
    """`encode` keeps the GIL, `encode_batch_fast` releases it."""
    if len(pieces) == 1 and len(pieces[0]) < _LONG_TEXT:
        ids: list[int] = backend.encode(pieces[0], add_special_tokens=False).ids
        return ids
    encodings = backend.encode_batch_fast(pieces, add_special_tokens=False)
    return [token_id for encoding in encodings for token_id in encoding.ids]


def _entry_bytes(text: str, ids: "array[int]") -> int:
    return 4 * len(text) + ids.itemsize * len(ids) + 256


def _spelling_ids(backend_json: dict[str, Any]) -> set[int]:
    """What the model spells text with although it looks like control tokens: unknown, single bytes."""
    model = backend_json["model"]
    if model["type"] == "Unigram":
        return set() if model["unk_id"] is None else {model["unk_id"]}
    byte_tokens = _BYTE_TOKENS if model.get("byte_fallback") else []
    spelling = [model.get("unk_token"), *byte_tokens]
    return {model["vocab"][text] for text in spelling if text in model["vocab"]}


def _plain_backend(backend_json: dict[str, Any], control_tokens: ControlTokens) -> Backend:
    """A backend in which exactly the control tokens are special, and special tokens are read as text."""
    added = [{**token, "special": token["id"] in control_tokens.ids} for token in backend_json["added_tokens"]]
    backend = Backend.from_str(json.dumps({**backend_json, "added_tokens": added}))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def without_control_texts(backend_json: dict[str, Any], control_ids: Collection[int]) -> dict[str, Any]:
    """The JSON, in which these tokens are special and have names that nobody can write: a text that reads like one is
    encoded as text by whatever reads it."""
    added, model = backend_json["added_tokens"], backend_json["model"]
    names = {token["content"]: f"<|{secrets.token_hex(16)}|>" for token in added if token["id"] in control_ids}

    def named(text: str) -> str:
        return names.get(text, text)

    vocab = model["vocab"]
    vocab = {named(t): i for t, i in vocab.items()} if isinstance(vocab, dict) else [[named(t), p] for t, p in vocab]
    renamed = {**model, "vocab": vocab}
    if isinstance(model.get("unk_token"), str):
        renamed["unk_token"] = named(model["unk_token"])
    return {
        **backend_json,
        "added_tokens": [
            {**token, "content": named(token["content"]), "special": token["special"] or token["id"] in control_ids}
            for token in added
        ],
        "model": renamed,
        "padding": None,
        "post_processor": None,
        "truncation": None,
    }


def _without_prefix_space(node: Any) -> Any:
    """The JSON without the space that Metaspace puts before the first piece of a whole text."""
    if isinstance(node, dict):
        if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
            return {**node, "prepend_scheme": "never"}
        return {key: value if key == "model" else _without_prefix_space(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_prefix_space(part) for part in node]
    return node


_BYTE_TOKENS: Final = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True, slots=True)
class _TokenBound:
    """No token stands for more than `characters_per_token` characters of text, `unwritten` ones not counted."""

    characters_per_token: int
    unwritten: tuple[str, ...]

    def fewest_tokens(self, text: str) -> int:
        """No more than this many are certain."""
        num_written = len(text) - sum(map(text.count, self.unwritten))
        return -(-num_written // self.characters_per_token)


def _token_bound(backend_json: dict[str, Any], control_tokens: ControlTokens) -> _TokenBound | None:
    """Certain of a vocabulary of bytes behind steps that drop no text; anything else may fuse or lose any length."""
    model = backend_json["model"]
    added = [token for token in backend_json["added_tokens"] if token["id"] not in control_tokens.ids]
    steps = [*_steps(backend_json["normalizer"]), *_steps(backend_json["pre_tokenizer"])]
    unwritten = _unwritten(model, steps) if model["type"] == "BPE" else None
    if (
        unwritten is None
        or not all(map(_drops_no_text, steps))
        or any(token["lstrip"] or token["rstrip"] for token in added)
    ):
        return None
    longest = max(map(len, [*model["vocab"], *(token["content"] for token in added)]))
    return _TokenBound(longest * max((_MOST_JOINED.get(step["type"], 1) for step in steps), default=1), unwritten)


def _steps(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normaliser or pre-tokenizer, its sequences unrolled."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [step for part in node.get("normalizers", node.get("pretokenizers", [])) for step in _steps(part)]


def _unwritten(model: dict[str, Any], steps: Sequence[dict[str, Any]]) -> tuple[str, ...] | None:
    """The characters that the vocabulary has no bytes for and drops (some lack control characters of ASCII); None
    where that cannot be told.
    """
    if not any(step["type"] == "ByteLevel" for step in steps):
        has_bytes = model["byte_fallback"] and all(text in model["vocab"] for text in _BYTE_TOKENS)
        return () if has_bytes else None
    spell = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    ((continuations, _),) = spell("".join(map(chr, range(0x80, 0xC0))))  # C2 80, C2 81, ...: in all that is not ASCII
    if not all(text in model["vocab"] for text in continuations[1::2]):
        return None
    return tuple(text for text in map(chr, range(0x80)) if spell(text)[0][0] not in model["vocab"])


def _drops_no_text(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "ByteLevel" | "Metaspace" | "Digits" | "Prepend" | "NFC":
            return True
        case "Split":
            return bool(step["behavior"] != "Removed")
        case "Replace":
            replaced = step["pattern"].get("String")
            return replaced is not None and len(replaced) <= len(step["content"])
        case _:
            return False
