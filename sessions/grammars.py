"""Grammars: from a `Grammar` to the constraint that one request's output obeys, through llguidance.

    check       source within bounds ▸ nothing in it that takes too long ▸ compiled on a thread of its own ▸ first mask
                computed: what fails here is a 400
    prototype   kept, a bounded number of them; never moved
    constraint  a copy of the prototype, made when the engine first asks; it follows one output

White space is fixed: one space after `,` and `:`, as Python's `json.dumps` has it, and none elsewhere. Where a grammar
allows any amount of it, a small model can go on indenting until its tokens are used up.

Control tokens are no text: only a Lark grammar that names one (`<tool_call>`) lets it be drawn. The end-of-reply tokens
are legal exactly where the output matches as it stands.
"""

import asyncio
import json
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sessions.errors import InvalidRequest
from sessions.json_schema import REWRITTEN, exact
from sessions.schema_bounds import excess
from sessions.tokenizer import Tokenizer
from sessions.types import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

T = TypeVar("T")
log = structlog.get_logger(__name__)

MAX_SOURCE_CHARACTERS: Final = 400_000
"""Of one grammar: a second or two to compile, at most. An object as large as OpenAI takes it (5,000 properties, 120,000
characters of names) is within."""

MAX_PROTOTYPES: Final = 32
"""Compiled grammars that are kept, the latest used."""

COMPILE_STACK_BYTES: Final = 256 << 20
"""llguidance recurses along `$ref` chains, up to 8 KiB a level. With 8 MiB, 10,000 characters overflow it."""

LIMITS: Final = LLParserLimits(max_lexer_states=20_000, max_grammar_size=200_000, verbose_errors=False)
"""A state is 1 to 2 KiB, and every running request has its own. The other limits are llguidance's: a mask ends after
some 15 ms with an error."""

FIXED_WHITESPACE: "Final[JsonCompileOptions]" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

MAX_TRIED_TOKENS: Final = 512
"""Of those that a grammar forces at its beginning: so many are followed to see whether it can be."""

_NAMED_ID: Final = re.compile(r"<\[(\d+)\]>")

_UNNAMED: Final = {
    "regex parse error": "pattern",
    "Unable to determine if regex": "pattern",
    "Pointer '": "$ref",
    "Resource '": "$ref",
    "Parser Error: Current row": "properties",
}
"""Beginnings of messages that do not name the keyword they are about."""


class Grammars:
    """One per service. llguidance's view of the vocabulary is made here: 0.3 s for 50,000 tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._eos_token_ids = tokenizer.eos_token_ids
        self._tokenizer = _ll_tokenizer(tokenizer)
        self._mask_bytes = 0
        self._prototypes: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "anaphora-grammar")

    @property
    def is_usable(self) -> bool:
        """Can llguidance read the model's tokenizer?"""
        return self._tokenizer is not None

    async def compile(self, grammar: Grammar) -> "CompiledGrammar":
        """Off the event loop if it is not known. Raises InvalidRequest, with `grammar.param`."""
        prototype = self._known(grammar)
        if prototype is None:
            for part in (*grammar.parts, grammar):
                if len(part.source) > MAX_SOURCE_CHARACTERS:
                    raise _refused(part, f"it is longer than {MAX_SOURCE_CHARACTERS} characters")
            prototype = await asyncio.get_running_loop().run_in_executor(self._worker, self._compile, grammar)
        return CompiledGrammar(grammar, prototype, self._eos_token_ids, self._mask_bytes)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _known(self, grammar: Grammar) -> LLMatcher | None:
        with self._lock:
            prototype = self._prototypes.get(grammar)
            if prototype is not None:
                self._prototypes.move_to_end(grammar)
            return prototype

    def _compile(self, grammar: Grammar) -> LLMatcher:
        """Worker thread."""
        prototype = self._known(grammar)  # a request before this one may have had the same
        if prototype is None:
            prototype = _on_deep_stack(lambda: self._compiled(grammar))
            with self._lock:
                self._prototypes[grammar] = prototype
                if len(self._prototypes) > MAX_PROTOTYPES:
                    self._prototypes.popitem(last=False)
        return prototype

    def _compiled(self, grammar: Grammar) -> LLMatcher:
        if self._tokenizer is None:
            raise _refused(grammar, "this server's model has a tokenizer for which no grammar can be compiled")
        for part in grammar.parts or (grammar,):
            if part.kind == "json_schema" and (reason := excess(json.loads(part.source))):
                raise _refused(part, reason)
        prototype = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=LIMITS)
        begun = prototype.deep_copy()
        begun.consume_tokens(begun.compute_ff_tokens()[:MAX_TRIED_TOKENS])
        self._mask_bytes = len(begun.compute_bitmask())  # what is too large to be followed mostly fails here
        if begun.is_error():
            for part in grammar.parts:
                self._compiled(part)  # raises if it is to blame
            raise _refused(grammar, _reason(begun.get_error()))
        return prototype


class CompiledGrammar:
    """A grammar that compiles. mask_bytes: of a mask."""

    def __init__(self, grammar: Grammar, prototype: LLMatcher, eos_token_ids: frozenset[int], mask_bytes: int) -> None:
        self._grammar = grammar
        self._prototype = prototype
        self._eos_token_ids = eos_token_ids
        self._mask_bytes = mask_bytes

    def constraint(self) -> "GrammarConstraint":
        """For one request."""
        return GrammarConstraint(self._grammar, self._prototype, self._eos_token_ids, self._mask_bytes)


class GrammarConstraint:
    """`engine.constraint.Constraint` over a copy of `prototype`, made when first needed: a queue of them is small."""

    def __init__(self, grammar: Grammar, prototype: LLMatcher, eos_token_ids: frozenset[int], mask_bytes: int) -> None:
        self._grammar = grammar
        self._prototype = prototype
        self._eos_token_ids = eos_token_ids
        self._mask_bytes = mask_bytes
        self._named_ids = (
            frozenset(map(int, _NAMED_ID.findall(grammar.source))) if grammar.kind == "lark" else frozenset()
        )
        self._own: LLMatcher | None = None
        self._forced: deque[int] = deque()
        """What is known to come next whatever the model says: it is looked for once, since all of it is tokenized."""

    @property
    def _matcher(self) -> LLMatcher:
        if self._own is None:
            self._own = self._prototype.deep_copy()
        return self._own

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> InvalidRequest | None:
        if not self._matcher.is_error():
            return None
        return InvalidRequest(
            f"The reply cannot be continued under '{self._grammar.param}': {_reason(self._matcher.get_error())}.",
            param=self._grammar.param,
            code="grammar_too_complex",
        )

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        if self._forced and self._forced.popleft() != token_id:
            self._forced.clear()

    def forced(self, limit: int) -> tuple[int, ...]:
        if not self._forced:
            forced = self._matcher.compute_ff_tokens()
            self._forced.extend(forced[: self._num_before_end(forced)])
        return tuple(islice(self._forced, max(0, limit)))

    def num_legal(self, token_ids: Sequence[int]) -> int:
        drafts = list(token_ids[: self._num_before_end(token_ids)])
        return self._matcher.validate_tokens(drafts) if drafts else 0

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """llguidance 1.9 rolls a token that the grammar names by its id back as if it were its text."""
        certain = list(islice(self._forced, len(drafts) + 1))
        if len(certain) > len(drafts) and certain[:-1] == list(drafts):
            return [self._only(token_id) for token_id in certain]
        rolls_back = self._named_ids.isdisjoint(drafts)
        matcher = self._matcher if rolls_back else self._matcher.deep_copy()
        masks = [matcher.compute_bitmask()]
        for draft in drafts:
            matcher.consume_token(draft)
            masks.append(matcher.compute_bitmask())
        if drafts and rolls_back:
            matcher.rollback(len(drafts))
        return masks

    def _only(self, token_id: int) -> bytes:
        mask = bytearray(self._mask_bytes)
        mask[token_id // 8] = 1 << token_id % 8
        return bytes(mask)

    def _num_before_end(self, token_ids: Sequence[int]) -> int:
        """Nothing is computed after an end of the reply."""
        ends = (index for index, token_id in enumerate(token_ids) if token_id in self._eos_token_ids)
        return next(ends, len(token_ids))


def embedded_json(schema: Grammar) -> str:
    """A schema as a Lark grammar embeds it (`%json {...}`)."""
    return "%json " + json.dumps({**_exact(schema), "x-guidance": _options(schema)}, ensure_ascii=False)


def _ll_tokenizer(tokenizer: Tokenizer) -> LLTokenizer | None:
    """None for a tokenizer that llguidance cannot read: then grammars are refused, and all else works."""
    eos_token_ids = sorted(tokenizer.eos_token_ids)
    try:
        return LLTokenizer(tokenizer.json_without_control_texts(), eos_token=eos_token_ids or None)
    except ValueError as error:
        log.warning("no grammars: llguidance cannot read this tokenizer", reason=str(error)[:200])
        return None


def _source(grammar: Grammar) -> str:
    """What llguidance reads. Raises InvalidRequest."""
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(_exact(grammar)), overrides=_options(grammar))
    except ValueError as error:
        raise _refused(grammar, _reason(str(error))) from None


def _exact(grammar: Grammar) -> dict[str, Any]:
    """A schema as llguidance compiles it, without switches, which are this server's to set."""
    schema: dict[str, Any] = json.loads(grammar.source)
    schema.pop("x-guidance", None)
    return exact(schema) if any(f'"{keyword}"' in grammar.source for keyword in REWRITTEN) else schema


def _options(grammar: Grammar) -> "JsonCompileOptions":
    return {**FIXED_WHITESPACE, "lenient": grammar.is_lenient}


def _refused(grammar: Grammar, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{grammar.param}': {reason}.", param=grammar.param, code="invalid_value")


def _reason(message: str) -> str:
    """llguidance's message in one line, with the keyword it is about."""
    lines = [line.strip() for line in message.split("\n<")[0].splitlines() if line.strip()]
    keyword = next((keyword for beginning, keyword in _UNNAMED.items() if message.startswith(beginning)), None)
    reason = lines[-1].removeprefix("error: ") if lines else "it cannot be compiled"
    reason = reason if len(reason) <= 300 else reason[:300] + "…"
    return f"{keyword}: {reason}" if keyword else reason


def _on_deep_stack(work: Callable[[], T]) -> T:
    """`work()` on a thread with room to recurse; the pages it does not touch cost nothing."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised by the caller
            errors.append(error)

    before = threading.stack_size(COMPILE_STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="anaphora-compile")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
