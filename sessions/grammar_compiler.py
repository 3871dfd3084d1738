"""GrammarCompiler: from a `Grammar` to llguidance's matcher of it. Blocks for as long as llguidance takes; any process.

White space is fixed: one space after `,` and `:`, as Python's `json.dumps` has it, and none elsewhere. Where a grammar
allows any amount of it, a small model can go on indenting until its tokens are used up.
"""

import json
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from sessions.errors import InvalidRequest
from sessions.json_schema import REWRITTEN, exact
from sessions.schema_bounds import excess
from sessions.types import Grammar

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

T = TypeVar("T")

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

_STACK_SIZE: Final = threading.Lock()
"""Held while `threading.stack_size`, one for all threads, is not what others want of it."""

MAX_TRIED_TOKENS: Final = 512
"""Of those that a grammar forces at its beginning: so many are followed to see whether it can be."""

_UNNAMED: Final = {
    "regex parse error": "pattern",
    "Unable to determine if regex": "pattern",
    "Pointer '": "$ref",
    "Anchor '": "$ref",
    "Resource '": "$ref",
    "Parser Error: Current row": "properties",
}
"""Beginnings of messages that do not name the keyword they are about."""


class GrammarCompiler:
    """llguidance's view of a vocabulary is made here: 0.3 s for 50,000 tokens.

    tokenizer_json: a `tokenizer.json` to which control tokens are text. Raises ValueError if llguidance cannot read it.
    """

    def __init__(self, tokenizer_json: str, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer_json, eos_token=[*eos_token_ids] or None)

    def compile(self, grammar: Grammar) -> tuple[LLMatcher, int]:
        """A matcher at the beginning of an output, and the bytes of a mask. Raises InvalidRequest."""
        return _on_deep_stack(lambda: self._compiled(grammar))

    def _compiled(self, grammar: Grammar) -> tuple[LLMatcher, int]:
        for part in grammar.parts or (grammar,):
            if part.kind == "json_schema" and (reason := excess(json.loads(part.source))):
                raise refused(part, reason)
        prototype = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=LIMITS)
        begun = prototype.deep_copy()
        begun.consume_tokens(begun.compute_ff_tokens()[:MAX_TRIED_TOKENS])
        mask_bytes = len(begun.compute_bitmask())  # what is too large to be followed mostly fails here
        if begun.is_error():
            for part in grammar.parts:
                self._compiled(part)  # raises if it is to blame
            raise refused(grammar, reason_of(begun.get_error()))
        return prototype, mask_bytes


def embedded_json(schema: Grammar) -> str:
    """A schema as a Lark grammar embeds it (`%json {...}`)."""
    return "%json " + json.dumps({**_exact(schema), "x-guidance": _options(schema)}, ensure_ascii=False)


def refused(grammar: Grammar, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{grammar.param}': {reason}.", param=grammar.param, code="invalid_value")


def reason_of(message: str) -> str:
    """llguidance's message in one line, with the keyword it is about."""
    lines = [line.strip() for line in message.split("\n<")[0].splitlines() if line.strip()]
    keyword = next((keyword for beginning, keyword in _UNNAMED.items() if message.startswith(beginning)), None)
    reason = lines[-1].removeprefix("error: ") if lines else "it cannot be compiled"
    reason = reason if len(reason) <= 300 else reason[:300] + "…"
    return f"{keyword}: {reason}" if keyword else reason


def _source(grammar: Grammar) -> str:
    """What llguidance reads. Raises InvalidRequest."""
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.source)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(_exact(grammar)), overrides=_options(grammar))
    except ValueError as error:
        raise refused(grammar, reason_of(str(error))) from None


def _exact(grammar: Grammar) -> dict[str, Any]:
    """A schema as llguidance compiles it, without switches, which are this server's to set."""
    schema: dict[str, Any] = json.loads(grammar.source)
    schema.pop("x-guidance", None)
    return exact(schema) if any(f'"{keyword}"' in grammar.source for keyword in REWRITTEN) else schema


def _options(grammar: Grammar) -> "JsonCompileOptions":
    return {**FIXED_WHITESPACE, "lenient": grammar.is_lenient}


def _on_deep_stack(work: Callable[[], T]) -> T:
    """`work()` on a thread with room to recurse; the pages it does not touch cost nothing."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised by the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="anaphora-compile")
    with _STACK_SIZE:
        before = threading.stack_size(COMPILE_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
