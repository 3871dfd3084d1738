"""Grammars: from a `Grammar` to the constraint that one request's output obeys, through llguidance.

    check       source within bounds ▸ compiled in time by another process, nothing in it being known to take too long ▸
                compiled here, on a thread: what fails is a 400
    prototype   kept, a bounded number of them; never moved
    constraint  a copy of the prototype, made when the engine first asks; it follows one output

There are two lanes. In the quick one a grammar has a second of processor time; what needs more goes to the patient one,
so that others wait a second for it and not for all of it. Where too many wait for that, one more is told to come again.

Control tokens are no text: only a Lark grammar that names one (`<tool_call>`) lets it be drawn. The end-of-reply tokens
are legal exactly where the output matches as it stands.
"""

import asyncio
import contextlib
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

import structlog
from llguidance import LLMatcher

from sessions.errors import InvalidRequest, Overloaded
from sessions.grammar_compiler import GrammarCompiler, reason_of, refused
from sessions.grammar_trial import GrammarTrial, TooCostly
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
MAX_PATIENT: Final = 4
"""Grammars in the patient lane, waiting or being tried."""

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
        self._num_patient = 0
        self._quick = _Lane(tokenizer, patience_s[0], is_kept=True)
        self._patient = _Lane(tokenizer, patience_s[1], is_kept=False)

    @property
    def is_usable(self) -> bool:
        """Can llguidance read the model's tokenizer?"""
        return self._compiler is not None

    async def compile(self, grammar: Grammar) -> "CompiledGrammar":
        """Off the event loop if it is not known. Raises InvalidRequest, with `grammar.param`, and Overloaded."""
        prototype = self._known(grammar)
        if prototype is None:
            for part in (*grammar.parts, grammar):
                if len(part.source) > MAX_SOURCE_CHARACTERS:
                    raise refused(part, f"it is longer than {MAX_SOURCE_CHARACTERS} characters")
            prototype = await self._prototype(grammar)
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

    async def _prototype(self, grammar: Grammar) -> LLMatcher:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TooCostly):
            return await loop.run_in_executor(self._quick.worker, self._compile, grammar, self._quick.trial)
        if self._num_patient == MAX_PATIENT:
            raise Overloaded("Too many grammars that take long to compile are waiting.", retry_after_s=self._patience_s)
        self._num_patient += 1
        try:
            return await loop.run_in_executor(self._patient.worker, self._compile, grammar, self._patient.trial)
        except TooCostly:
            log.warning("a grammar took too long to compile", kind=grammar.kind, num_characters=len(grammar.source))
            reason = f"it takes more than {self._patience_s:g} s, or too much memory, to compile"
            raise refused(grammar, reason) from None
        finally:
            self._num_patient -= 1

    def _compile(self, grammar: Grammar, trial: GrammarTrial) -> LLMatcher:
        """Worker thread."""
        prototype = self._known(grammar)  # a request before this one may have had the same
        if prototype is None:
            if self._compiler is None:
                raise refused(grammar, "this server's model has a tokenizer for which no grammar can be compiled")
            trial(grammar)
            prototype, self._mask_bytes = self._compiler.compile(grammar)
            with self._lock:
                self._prototypes[grammar] = prototype
                if len(self._prototypes) > MAX_PROTOTYPES:
                    self._prototypes.popitem(last=False)
        return prototype


class _Lane:
    """A thread with its trial."""

    def __init__(self, tokenizer: Tokenizer, seconds: float, *, is_kept: bool) -> None:
        eos_token_ids = sorted(tokenizer.eos_token_ids)
        self.trial = GrammarTrial(tokenizer.json_without_control_texts, eos_token_ids, seconds, is_kept=is_kept)
        self.worker = ThreadPoolExecutor(1, "anaphora-grammar")

    def close(self) -> None:
        self.worker.shutdown(wait=False, cancel_futures=True)
        self.trial.close()


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
