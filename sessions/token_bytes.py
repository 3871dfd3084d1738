"""TokenBytes: the bytes that each token of a vocabulary writes. Any thread.

A token may end inside a code point, so text is not enough: the bytes of a reply's tokens, one after another, are the
bytes of its text.
"""

from typing import Any, Final

from tokenizers import Tokenizer as Backend

from sessions.types import TokenId

_ANCHOR: Final = "a"
"""Something ordinary to decode a token after: a decoder may drop what opens a text."""


class TokenBytes:
    """backend_json: the backend's own description."""

    def __init__(self, backend: Backend, backend_json: dict[str, Any]) -> None:
        self._backend = backend
        self._unwritten = {token["id"] for token in backend_json["added_tokens"] if token["special"]}
        is_byte_level = any(step["type"] == "ByteLevel" for step in _steps(backend_json["decoder"]))
        self._byte_of = _byte_level_alphabet() if is_byte_level else None
        has_fallback = backend_json["model"].get("byte_fallback", False)
        self._fallback = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)} if has_fallback else {}
        self._anchor: list[int] = backend.encode(_ANCHOR, add_special_tokens=False).ids
        self._anchor_text: str = backend.decode(self._anchor)
        self._known: dict[int, bytes] = {}

    def name(self, token_id: int) -> str:
        """As the vocabulary has it: what stands for a token that writes nothing."""
        return self._backend.id_to_token(token_id) or ""

    def of(self, token_id: int, *, opens: bool = False) -> bytes | None:
        """None for special tokens, which no text shows. opens: the first token of a text."""
        if token_id in self._unwritten:
            return None
        written = self._known.get(token_id)
        if written is None:
            written = self._known[TokenId(token_id)] = self._of(token_id)
        if opens and written.startswith(b" ") and self._backend.decode([token_id]).encode() == written[1:]:
            return written[1:]
        return written

    def _of(self, token_id: int) -> bytes:
        name = self.name(token_id)
        if name in self._fallback:
            return self._fallback[name]
        if self._byte_of is None:
            text: str = self._backend.decode([*self._anchor, token_id])
            return text[len(self._anchor_text) :].encode()
        spelt = [self._byte_of.get(character) for character in name]
        return name.encode() if None in spelt else bytes(byte for byte in spelt if byte is not None)


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, as GPT-2 spells bytes: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return steps
