"""Grammars: from a `Grammar` to the constraint that one request's output obeys, through llguidance.

    check       source within bounds ▸ compiled in time by another process, nothing in it being known to take too long ▸
                compiled here, on a thread: what fails is a 400
    prototype   kept, a bounded number of them; never moved
    constraint  a copy of the prototype, made when the engine first asks; it follows one output

There are two lanes. In the quick one a grammar has a second of processor time; what needs more goes to the patient one,
so that others wait a second for it and not for all of it. In each the tenants take turns. Where too many of a tenant's
wait, one more is told to come again.

Control tokens are no text: only a Lark grammar that names one (`<tool_call>`) lets it be drawn. The end-of-reply tokens
are legal exactly where the output matches as it stands.
"""

import contextlib
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Final

import structlog
from llguidance import LLMatcher

from sessions.errors import InvalidRequest
from sessions.grammar_compiler import GrammarCompiler, reason_of, refused
from sessions.grammar_lane import GrammarLane
from sessions.grammar_trial import MAX_UNTRIED_CHARACTERS, GrammarTrial, TooCostly, Untriable
from sessions.tokenizer import Tokenizer
from sessions.types import Grammar

log = structlog.get_logger(__name__)

MAX_SOURCE_CHARACTERS: Final = 400_000
"""Of one grammar: a second or two to compile, at most. An object as large as OpenAI takes it (5,000 properties, 120,000
characters of names) is within."""

MAX_PROTOTYPES: Final = 32
"""Compiled grammars that are kept, the latest used."""

QUICK_S: Final = 1.0
PATIENT_S: Final = 4.0
MAX_QUICK: Final = 128
MAX_PATIENT: Final = 4
"""A tenant's grammars in each lane, waiting or being tried."""
MAX_QUICK_WAIT_S: Final = 10.0
"""For those of the same tenant: a hundred ordinary ones take less, a hundred costly ones minutes."""

_NAMED_ID: Final = re.compile(r"<\[(\d+)\]>")


class Grammars:
    """One per service. patience_s: processor time that a grammar has to compile, in each lane."""

    def __init__(self, tokenizer: Tokenizer, *, patience_s: tuple[float, float] = (QUICK_S, PATIENT_S)) -> None:
        self._eos_token_ids = tokenizer.eos_token_ids
        self._compiler = _compiler(tokenizer)
        self._mask_bytes = 0
        self._prototypes: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._patience_s = patience_s[-1]
        self._quick = GrammarLane(
            _trial(tokenizer, patience_s[0], is_kept=True),
            max_line=MAX_QUICK,
            max_wait_s=MAX_QUICK_WAIT_S,
            retry_after_s=patience_s[0],
        )
        self._patient = GrammarLane(
            _trial(tokenizer, patience_s[1], is_kept=False), max_line=MAX_PATIENT, retry_after_s=patience_s[1]
        )

    @property
    def is_usable(self) -> bool:
        """Can llguidance read the model's tokenizer?"""
        return self._compiler is not None

    async def compile(self, grammar: Grammar, tenant_id: str = "") -> "CompiledGrammar":
        """Off the event loop if it is not known. Raises InvalidRequest, with `grammar.param`, Overloaded, Draining."""
        prototype = self._known(grammar)
        if prototype is None:
            for part in (*grammar.parts, grammar):
                if len(part.source) > MAX_SOURCE_CHARACTERS:
                    raise refused(part, f"it is longer than {MAX_SOURCE_CHARACTERS} characters")
            prototype = await self._prototype(grammar, tenant_id)
        return CompiledGrammar(grammar, prototype, self._eos_token_ids, self._mask_bytes)

    def close(self) -> None:
        self._quick.close()
        self._patient.close()

    def _known(self, grammar: Grammar) -> LLMatcher | None:
        with self._lock:
            prototype = self._prototypes.get(grammar)
            if prototype is not None:
                self._prototypes.move_to_end(grammar)
            return prototype

    async def _prototype(self, grammar: Grammar, tenant_id: str) -> LLMatcher:
        with contextlib.suppress(TooCostly):
            return await self._quick.run(tenant_id, grammar, partial(self._compile, tenant_id, grammar, self._quick))
        try:
            return await self._patient.run(
                tenant_id, grammar, partial(self._compile, tenant_id, grammar, self._patient)
            )
        except Untriable:
            reason = f"longer than {MAX_UNTRIED_CHARACTERS} characters, it may be too costly to compile at present"
        except TooCostly:
            log.warning("a grammar takes too long to compile", kind=grammar.kind, num_characters=len(grammar.source))
            reason = f"it takes more than {self._patience_s:g} s, or too much memory, to compile"
        raise refused(grammar, reason)

    def _compile(self, tenant_id: str, grammar: Grammar, lane: GrammarLane) -> LLMatcher:
        """Worker thread."""
        prototype = self._known(grammar)  # a request before this one may have had the same
        if prototype is None:
            if self._compiler is None:
                raise refused(grammar, "this server's model has a tokenizer for which no grammar can be compiled")
            lane.check(tenant_id, grammar)
            prototype, self._mask_bytes = self._compiler.compile(grammar)
            with self._lock:
                self._prototypes[grammar] = prototype
                if len(self._prototypes) > MAX_PROTOTYPES:
                    self._prototypes.popitem(last=False)
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
            f"The reply cannot be continued under '{self._grammar.param}': {reason_of(self._matcher.get_error())}.",
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


def _compiler(tokenizer: Tokenizer) -> GrammarCompiler | None:
    """None for a tokenizer that llguidance cannot read: then grammars are refused, and all else works."""
    try:
        return GrammarCompiler(tokenizer.json_without_control_texts(), sorted(tokenizer.eos_token_ids))
    except ValueError as error:
        log.warning("no grammars: llguidance cannot read this tokenizer", reason=str(error)[:200])
        return None


def _trial(tokenizer: Tokenizer, seconds: float, *, is_kept: bool) -> GrammarTrial:
    eos_token_ids = sorted(tokenizer.eos_token_ids)
    return GrammarTrial(tokenizer.json_without_control_texts, eos_token_ids, seconds, is_kept=is_kept)
