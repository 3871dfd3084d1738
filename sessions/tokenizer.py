"""Tokenizer: a model folder's tokenizer and chat template behind `encode(prompt)` and `decode(ids)`. No
tensors.

Ordinary conversations get exactly the ids of `transformers`' `apply_chat_template(..., tokenize=True)`. A
prompt's plain segments are encoded by copies of the backend that match no control token, so text cannot
become one. Threads: `encode` and `decode` may be called from one thread at a time (the encode cache is not
locked).
"""

import datetime
import json
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final

import jinja2
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

from sessions.control_tokens import ControlToken, ControlTokens, is_control
from sessions.errors import InvalidRequest, ModelRefused
from sessions.prompt import ChatTemplate, Prompt, Segment, TemplateError
from sessions.types import TokenId

TEMPLATE_DATE: Final = datetime.datetime(2024, 7, 26)
"""What "now" is inside a template: the day Llama 3's own template falls back to. A real date would rewrite
every prompt, and so lose every cached prefix, at midnight (`docs/rendering.md`)."""

DEFAULT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, for a model that brings no template (a base model): plain, append-stable, and widely trained on."""

CACHE_BYTES: Final = 64 << 20
_END_OF_TURN: Final = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")
_compile_jinja: Callable[[str], jinja2.Template] = _cached_compile_jinja_template
"""What `apply_chat_template` compiles with; despite its name it caches nothing. Private, so one more reason
to pin transformers exactly: there is no public way to give a template its own `strftime_now`."""
_TEMPLATE_ERRORS: Final = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
)


class Tokenizer:
    """Made by `Tokenizer.load`. Ids are those of the model's own vocabulary.

    eos_token_ids: any of these ends a reply. digest, template_digest: hex sha256, for the hash root.
    """

    def __init__(self, hf: PreTrainedTokenizerBase, generation_eos: Sequence[int], today: datetime.datetime) -> None:
        self._backend: Backend = hf.backend_tokenizer
        backend_json = json.loads(self._backend.to_str())
        control_tokens = ControlTokens(_control_tokens(backend_json))
        self._encoder = _PlainEncoder(backend_json, control_tokens)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        chat_ends = {token.id for text, token in control_tokens.by_text.items() if text in _END_OF_TURN}
        own_eos = () if hf.eos_token_id is None else (TokenId(hf.eos_token_id),)
        self.eos_token_ids = frozenset({*map(TokenId, generation_eos), *chat_ends, *own_eos})
        self.digest = sha256(self._backend.to_str().encode()).hexdigest()
        self.template = _chat_template(hf, control_tokens, today)
        self.template_digest = self.template.digest

    @classmethod
    def load(cls, folder: Path, *, today: datetime.datetime = TEMPLATE_DATE) -> "Tokenizer":
        """Read the tokenizer files of `folder`; runs no code from it but the template, sandboxed.

        Raises ModelRefused if the folder has no tokenizer, needs remote code, or has only a slow one.
        """
        try:
            hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            raise ModelRefused(f"No usable tokenizer in {folder.name}: {error}") from error
        if not hf.is_fast:
            raise ModelRefused(
                f"{type(hf).__name__} has no fast (Rust) implementation; only fast tokenizers are served."
            )
        return cls(hf, _generation_eos(folder), today)

    def encode(
        self, prompt: Prompt, *, scope: str = "", spliced: Mapping[int, Sequence[TokenId]] | None = None
    ) -> list[TokenId]:
        """The prompt's token ids. Only segments that `scope` has not encoded lately cost anything.

        scope: whose cache entries may be used. One tenant's, so that none can time what another one wrote.
        spliced: message index -> the ids to use for its content in place of encoding it (token-exact turns);
        entries whose content `prompt.contents` does not locate are ignored.
        Raises InvalidRequest if a text could only be written with a control token.
        """
        ids: list[TokenId] = []
        for segment in prompt.segments:
            if segment.control_id is not None:
                ids.append(segment.control_id)
            elif spliced:
                self._encode_spliced(segment, prompt, scope, spliced, ids)
            else:
                ids.extend(self._encoder.encode(segment.text, first=segment.start == 0, scope=scope))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out. Bytes that are not whole UTF-8 read as U+FFFD."""
        return self._backend.decode(ids, skip_special_tokens=True)

    def _encode_spliced(
        self,
        segment: Segment,
        prompt: Prompt,
        scope: str,
        spliced: Mapping[int, Sequence[TokenId]],
        ids: list[TokenId],
    ) -> None:
        at = segment.start
        end = segment.start + len(segment.text)
        for span in prompt.contents_within(segment):
            if span.message in spliced:
                ids.extend(self._encoder.encode(prompt.text[at : span.start], first=at == 0, scope=scope))
                ids.extend(spliced[span.message])
                at = span.end
        ids.extend(self._encoder.encode(prompt.text[at:end], first=at == 0, scope=scope))


class _PlainEncoder:
    """Text to ids with control tokens switched off, through a bounded least-recently-used cache."""

    def __init__(self, backend_json: dict[str, Any], control_tokens: ControlTokens) -> None:
        self._control_tokens = control_tokens
        self._never_spelt = control_tokens.ids - _spelling_ids(backend_json)
        self._first = _plain_backend(backend_json, control_tokens)
        self._later = _plain_backend(_without_prefix_space(backend_json), control_tokens)
        self._cache: OrderedDict[tuple[str, bool, str], array[int]] = OrderedDict()
        self._cached_bytes = 0

    def encode(self, text: str, *, first: bool, scope: str) -> Sequence[TokenId]:
        """first: `text` opens the prompt, where some tokenizers put a prefix space."""
        if not text:
            return ()
        key = (scope, first, text)
        cached = self._cache.get(key)
        if cached is None:
            cached = array("I", self._encode(text, self._first if first else self._later))
            self._cache[key] = cached
            self._cached_bytes += _entry_bytes(text, cached)
            while self._cached_bytes > CACHE_BYTES:
                (_, _, evicted_text), evicted = self._cache.popitem(last=False)
                self._cached_bytes -= _entry_bytes(evicted_text, evicted)
        else:
            self._cache.move_to_end(key)
        return cached  # type: ignore[return-value]  # array[int] holds TokenIds

    def _encode(self, text: str, backend: Backend) -> list[int]:
        """A vocabulary may hold a control token's text as an ordinary piece (Unigram's `</s>`), and a
        normaliser may make it of other text (NFKC, of full-width brackets). Then the text is cut smaller.
        """
        for cut in (_whole, self._control_tokens.break_up, list):
            ids: list[int] = []
            for piece, encoder in zip(cut(text), chain([backend], repeat(self._later)), strict=False):
                ids += encoder.encode(piece, add_special_tokens=False).ids
            if self._never_spelt.isdisjoint(ids):
                return ids
        raise InvalidRequest("A text cannot be written without a control token.", param="messages")


def _whole(text: str) -> list[str]:
    return [text]


def _spelling_ids(backend_json: dict[str, Any]) -> set[int]:
    """What the model spells text with although it looks like control tokens: unknown, single bytes."""
    model = backend_json["model"]
    if model["type"] == "Unigram":
        return set() if model["unk_id"] is None else {model["unk_id"]}
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if model.get("byte_fallback") else []
    spelling = [model.get("unk_token"), *byte_tokens]
    return {model["vocab"][text] for text in spelling if text in model["vocab"]}


def _entry_bytes(text: str, ids: "array[int]") -> int:
    return 4 * len(text) + ids.itemsize * len(ids) + 256


def _control_tokens(backend_json: dict[str, Any]) -> list[ControlToken]:
    return [
        ControlToken(TokenId(token["id"]), token["content"], token["lstrip"], token["rstrip"], token["single_word"])
        for token in backend_json["added_tokens"]
        if is_control(token["content"], special=token["special"])
    ]


def _plain_backend(backend_json: dict[str, Any], control_tokens: ControlTokens) -> Backend:
    """A backend in which exactly the control tokens are special, and special tokens are read as text."""
    added = [{**token, "special": token["id"] in control_tokens.ids} for token in backend_json["added_tokens"]]
    backend = Backend.from_str(json.dumps({**backend_json, "added_tokens": added}))
    backend.encode_special_tokens = True
    return backend


def _without_prefix_space(node: Any) -> Any:
    """The JSON without the space that Metaspace puts before the first piece of a whole text."""
    if isinstance(node, dict):
        if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
            return {**node, "prepend_scheme": "never"}
        return {key: value if key == "model" else _without_prefix_space(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_prefix_space(part) for part in node]
    return node


def _generation_eos(folder: Path) -> list[int]:
    if not (folder / "generation_config.json").is_file():
        return []
    eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    return [eos] if isinstance(eos, int) else list(eos or ())


def _chat_template(
    hf: PreTrainedTokenizerBase, control_tokens: ControlTokens, today: datetime.datetime
) -> ChatTemplate:
    """The model's template in transformers' sandbox, compiled for this tokenizer alone: it holds `today`."""
    source: str = hf.get_chat_template() if hf.chat_template else DEFAULT_TEMPLATE
    try:
        compiled = _compile_jinja(source)
    except jinja2.TemplateError as error:
        raise ModelRefused(f"The model's chat template does not compile: {error}") from error
    compiled.globals["strftime_now"] = today.strftime

    def apply(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool) -> str:
        try:
            return compiled.render(
                **hf.special_tokens_map,
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except _TEMPLATE_ERRORS as error:
            raise TemplateError(str(error)) from error

    digest = sha256(f"{today.isoformat()}\n{source}".encode()).hexdigest()
    return ChatTemplate(apply, control_tokens, takes_tools="tools" in source, digest=digest)
