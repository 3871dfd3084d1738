"""Tokenizer: a model folder's tokenizer and chat template behind `encode(prompt)` and `decode(ids)`. No
tensors.

Ordinary conversations get exactly the ids of `transformers`' `apply_chat_template(..., tokenize=True)`. A
prompt's plain segments are encoded without control tokens (`plain_encoder`), so text cannot become one. Threads:
any may call `encode` and `decode`, at the same time too.
"""

import datetime
import json
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from sessions.chat_template import TEMPLATE_DATE, chat_template
from sessions.control_tokens import ControlToken, ControlTokens, is_control
from sessions.detokenizer import fitting
from sessions.errors import ContextLengthExceeded, ModelRefused
from sessions.plain_encoder import PlainEncoder, TooManyTokensError, without_control_texts
from sessions.prompt import Prompt
from sessions.token_bytes import TokenBytes
from sessions.types import TokenId

_END_OF_TURN: Final = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


class Tokenizer:
    """Made by `Tokenizer.load`. Ids are those of the model's own vocabulary.

    eos_token_ids: any of these ends a reply. control_ids: only the template writes them. code_point_endings: see
    `Detokenizer`. prefix_ids: what the model begins every text with (BOS), chat aside, whose template says it.
    digest, template_digest: hex sha256, for the hash root.
    """

    def __init__(self, hf: PreTrainedTokenizerBase, generation_eos: Sequence[int], today: datetime.datetime) -> None:
        self._backend: Backend = hf.backend_tokenizer
        backend_json = json.loads(self._backend.to_str())
        control_tokens = ControlTokens(_control_tokens(backend_json))
        self._encoder = PlainEncoder(backend_json, control_tokens)
        byte_fallback = backend_json["model"].get("byte_fallback", False)
        self.code_point_endings = _code_point_endings(self._backend, byte_fallback=byte_fallback)
        self.prefix_ids = _prefix_ids(self._backend)
        self.token_bytes = TokenBytes(self._backend, backend_json)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        chat_ends = {token.id for text, token in control_tokens.by_text.items() if text in _END_OF_TURN}
        own_eos = () if hf.eos_token_id is None else (TokenId(hf.eos_token_id),)
        self.eos_token_ids = frozenset({*map(TokenId, generation_eos), *chat_ends, *own_eos})
        self.digest = sha256(self._backend.to_str().encode()).hexdigest()
        self.template = chat_template(hf, control_tokens, today)
        by_text = control_tokens.by_text
        self._markers: dict[int, str] = {
            by_text[text].id: text for text in self.template.dialect.markers if text in by_text
        }
        self.marker_ids: dict[str, int] = {text: token_id for token_id, text in self._markers.items()}
        self.control_ids = control_tokens.ids - self._markers.keys()
        self.template_digest = self.template.digest

    @classmethod
    def load(cls, folder: Path, *, today: datetime.datetime = TEMPLATE_DATE) -> "Tokenizer":
        """Read the tokenizer files of `folder`; runs no code from it but the template, sandboxed.

        Raises ModelRefused if the folder has no tokenizer, needs remote code, or has only a slow one.
        """
        try:
            hf = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, config=_plain_config(folder)
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelRefused(f"No usable tokenizer in {folder.name}: {error}") from error
        if not hf.is_fast:
            raise ModelRefused(
                f"{type(hf).__name__} has no fast (Rust) implementation; only fast tokenizers are served."
            )
        return cls(hf, _generation_eos(folder), today)

    def encode(
        self,
        prompt: Prompt,
        *,
        scope: str = "",
        spliced: Mapping[int, Sequence[TokenId]] | None = None,
        max_model_len: int = sys.maxsize,
    ) -> "array[int]":
        """The prompt's token ids. Only segments that `scope` has not encoded lately cost anything.

        scope: whose cache entries may be used. One tenant's, so that none can time what another one wrote.
        spliced: message index -> the ids to use for its content in place of encoding it (token-exact turns);
        entries whose content `prompt.contents` does not locate are ignored.
        Raises InvalidRequest if a text could only be written with a control token, and ContextLengthExceeded as soon
        as it is certain that the prompt leaves no room for a reply.
        """
        ids = array("I", prompt.known_ids)
        pieces = _pieces(prompt, spliced or {})
        for piece in pieces:
            try:
                ids.extend(self._piece_ids(piece, scope, max_model_len - len(ids)))
            except TooManyTokensError as error:
                raise ContextLengthExceeded(
                    num_prompt_tokens=len(ids) + error.num_tokens, max_model_len=max_model_len, is_lower_bound=True
                ) from None
            if len(ids) >= max_model_len:
                raise ContextLengthExceeded(
                    num_prompt_tokens=len(ids),
                    max_model_len=max_model_len,
                    is_lower_bound=next(pieces, None) is not None,
                )
        return ids

    def tokens_before(
        self,
        prompt: Prompt,
        offsets: Sequence[int],
        *,
        scope: str,
        spliced: Mapping[int, Sequence[TokenId]] | None = None,
    ) -> list[int]:
        """For each of `offsets` into the text, rising: how many of `encode`'s ids stand wholly before it.

        What was encoded lately costs nothing but the walk. The prompt must not begin with `known_ids`.
        """
        counts: list[int] = []
        num_ids = 0
        for piece in _pieces(prompt, spliced or {}):
            ids = self._piece_ids(piece, scope, sys.maxsize)
            while len(counts) < len(offsets) and offsets[len(counts)] < piece.start + len(piece.text):
                before = piece.text[: max(0, offsets[len(counts)] - piece.start)]
                counts.append(num_ids + (fitting(self.decode, ids, before)[0] if before else 0))
            num_ids += len(ids)
            if len(counts) == len(offsets):
                break
        return counts + [num_ids] * (len(offsets) - len(counts))

    def offset_of(
        self,
        prompt: Prompt,
        num_tokens: int,
        *,
        scope: str,
        spliced: Mapping[int, Sequence[TokenId]] | None = None,
    ) -> int:
        """Where in the text the token stands that follows the first `num_tokens`. As for `tokens_before`."""
        for piece in _pieces(prompt, spliced or {}):
            ids = self._piece_ids(piece, scope, sys.maxsize)
            if num_tokens < len(ids):
                said = self.decode(ids[:num_tokens]) if num_tokens else ""
                return piece.start + min(len(said), len(piece.text))
            num_tokens -= len(ids)
        return len(prompt.text)

    def _piece_ids(self, piece: "_Piece", scope: str, room: int) -> Sequence[TokenId]:
        if piece.ids is not None:
            return piece.ids
        return self._encoder.encode(piece.text, first=piece.start == 0, scope=scope, room=room)

    def encode_text(self, text: str, *, scope: str) -> list[TokenId]:
        """Token ids of plain text as it would stand inside a prompt, without control tokens."""
        return list(self._encoder.encode(text, first=False, scope=scope))

    def encode_plain(self, text: str, *, scope: str, max_model_len: int = sys.maxsize) -> list[TokenId]:
        """A text that is a whole prompt: `prefix_ids`, and the text without control tokens. Raises as `encode` does."""
        room = max_model_len - len(self.prefix_ids)
        try:
            ids = [*self.prefix_ids, *self._encoder.encode(text, first=True, scope=scope, room=room)]
        except TooManyTokensError as error:
            ids, num_tokens = [], len(self.prefix_ids) + error.num_tokens
        else:
            num_tokens = len(ids)
        if num_tokens >= max_model_len:
            raise ContextLengthExceeded(
                num_prompt_tokens=num_tokens, max_model_len=max_model_len, is_lower_bound=not ids, param="prompt"
            )
        return ids

    def json_without_control_texts(self) -> str:
        """Its `tokenizer.json`, to whose readers what looks like a control token is text."""
        nameless = without_control_texts(json.loads(self._backend.to_str()), self.control_ids)
        return json.dumps(nameless, ensure_ascii=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out but for markers of calls and thoughts. Bytes that are not whole
        UTF-8 read as U+FFFD."""
        if self._markers.keys().isdisjoint(ids):
            return self._backend.decode(ids, skip_special_tokens=True)
        pieces: list[str] = []
        start = 0
        for at, token_id in enumerate(ids):
            if token_id in self._markers:
                between = self._backend.decode(ids[start:at], skip_special_tokens=True)
                pieces += between, self._markers[token_id]
                start = at + 1
        return "".join([*pieces, self._backend.decode(ids[start:], skip_special_tokens=True)])

    def written(self, ids: Sequence[int]) -> str:
        """The text of `ids` as a prompt's is written, special tokens by their names. For people."""
        return self._backend.decode(ids, skip_special_tokens=False)


class _Piece(NamedTuple):
    """`text`, which stands at `start` of a prompt's; its ids, if they are known."""

    start: int
    text: str
    ids: Sequence[TokenId] | None = None


def _pieces(prompt: Prompt, spliced: Mapping[int, Sequence[TokenId]]) -> Iterator[_Piece]:
    """The prompt from left to right, as plain text to encode and as ids that are known."""
    for segment in prompt.segments:
        if segment.control_id is not None:
            yield _Piece(segment.start, segment.text, (segment.control_id,))
            continue
        if segment.said is not None:
            yield _Piece(segment.start, segment.text, segment.said)
            continue
        at = segment.start
        for span in prompt.contents_within(segment) if spliced else ():
            if span.message in spliced:
                yield _Piece(at, prompt.text[at : span.start])
                yield _Piece(span.start, prompt.text[span.start : span.end], spliced[span.message])
                at = span.end
        yield _Piece(at, segment.text[at - segment.start :])


def _control_tokens(backend_json: dict[str, Any]) -> list[ControlToken]:
    return [
        ControlToken(TokenId(token["id"]), token["content"], token["lstrip"], token["rstrip"], token["single_word"])
        for token in backend_json["added_tokens"]
        if is_control(token["content"], special=token["special"])
    ]


def _prefix_ids(backend: Backend) -> tuple[TokenId, ...]:
    """What the backend's own post-processor puts before a text."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    starts = (at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return tuple(map(TokenId, whole[: next(starts, 0)]))


def _code_point_endings(backend: Backend, *, byte_fallback: bool) -> tuple[tuple[int, ...], ...]:
    """Tokens of bytes: one of these makes any beginning of a UTF-8 code point whole. None if bytes are no tokens."""
    if byte_fallback:
        names = ["<0x80>", "<0x90>", "<0xA0>"]
    else:
        ((spelt, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\u0800\U00010000")
        names = [spelt[2], spelt[4], spelt[1]]  # E0 A0 80, F0 90 80 80
    x80, x90, xa0 = map(backend.token_to_id, names)
    if x80 is None or x90 is None or xa0 is None:
        return ()
    return ((x80,), (x80, x80), (x80, x80, x80), (xa0, x80), (x90, x80, x80))


def _plain_config(folder: Path) -> PreTrainedConfig | None:
    """All that AutoTokenizer reads of a config whose tokenizer class is named, without the model's code.

    AutoConfig would import that, and a good part of torch with it: 1.6 s. None where the model's class must say more.
    """
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "auto_map" in named or not named.get("tokenizer_class"):
        return None
    config, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
    if config.get("model_type", "").startswith("mistral"):  # of these AutoTokenizer looks at more than the class's name
        return None
    return PreTrainedConfig.from_dict(config)


def _generation_eos(folder: Path) -> list[int]:
    if not (folder / "generation_config.json").is_file():
        return []
    eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or ())
