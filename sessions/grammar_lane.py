"""GrammarLane: a thread that tries grammars and compiles them, and who waits for it.

    requests of tenant a   ──▶  a's line  ─┐
    requests of tenant b   ──▶  b's line  ─┴─▶   thread: one of each line at most, so tenants take turns

A line is bounded, in grammars and in the time that one stands in it: however many costly ones a tenant sends at once,
another waits for one of them, and the tenant itself for seconds. What took too long is remembered by its digest, and
not tried again: it would take as long as before. Not for ever, as a process may also die of a busy machine, and for
its tenant alone: a refusal at once would tell another that somebody had sent the same.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, TypeVar

from sessions.errors import Draining, Overloaded
from sessions.grammar_trial import GrammarTrial, TooCostly, Untriable
from sessions.types import Grammar

T = TypeVar("T")

MAX_COSTLY: Final = 1024
"""Grammars remembered as too costly, the latest."""
COSTLY_S: Final = 300.0
"""How long each is."""


class GrammarLane:
    """max_line: grammars of one tenant that wait, the one that is tried among them; max_wait_s: None is no limit.

    retry_after_s: told to whom is sent away. `run` and `close` are the event loop's, `check` the thread's.
    """

    def __init__(
        self, trial: GrammarTrial, *, max_line: int, retry_after_s: float, max_wait_s: float | None = None
    ) -> None:
        self.trial = trial
        self._worker = ThreadPoolExecutor(1, "anaphora-grammar")
        self._max_line = max_line
        self._max_wait_s = max_wait_s
        self._retry_after_s = retry_after_s
        self._lines: dict[str, _Line] = {}
        self._costly = _Costly()

    async def run(self, tenant_id: str, grammar: Grammar, work: Callable[[], T]) -> T:
        """`work()`, which has `check` look at the grammar, on the thread when it is the tenant's turn.

        Raises what it does, TooCostly, Overloaded, and Draining once this is closed.
        """
        if (tenant_id, grammar) in self._costly:
            raise TooCostly
        line = self._lines.setdefault(tenant_id, _Line())
        if line.length == self._max_line:
            raise self._overloaded()
        line.length += 1
        try:
            async with asyncio.timeout(self._max_wait_s) as waiting, line.turn:
                waiting.reschedule(None)
                if self.trial.is_closed:
                    raise Draining
                return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except TimeoutError:
            raise self._overloaded() from None
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[tenant_id]

    def check(self, tenant_id: str, grammar: Grammar) -> None:
        """Raises InvalidRequest, TooCostly and Draining, as the trial does."""
        if (tenant_id, grammar) in self._costly:  # one before it in the line may have been the same
            raise TooCostly
        try:
            self.trial(grammar)
        except Untriable:
            raise
        except TooCostly:
            self._costly.add(tenant_id, grammar)
            raise

    def close(self) -> None:
        """Who waits has Draining."""
        self.trial.close()
        self._worker.shutdown(wait=False)  # what was begun ends at once, with the trial's Draining

    def _overloaded(self) -> Overloaded:
        return Overloaded("Too many new grammars are waiting to be compiled.", retry_after_s=self._retry_after_s)


@dataclass(slots=True)
class _Line:
    """Of one tenant. turn: held by the one that the thread has, or will have next."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class _Costly:
    """Digests of tenants' grammars, each until a time. Any thread."""

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, sent: tuple[str, Grammar]) -> bool:
        return bool(self._until) and self._until.get(_digest(*sent), 0.0) > time.monotonic()

    def add(self, tenant_id: str, grammar: Grammar) -> None:
        digest = _digest(tenant_id, grammar)
        with self._lock:
            self._until[digest] = time.monotonic() + COSTLY_S
            self._until.move_to_end(digest)
            if len(self._until) > MAX_COSTLY:
                self._until.popitem(last=False)


def _digest(tenant_id: str, grammar: Grammar) -> bytes:
    """Of what makes two grammars equal, and of whose it is."""
    text = f"{len(tenant_id)} {tenant_id} {grammar.kind} {grammar.is_lenient} {grammar.source}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
