"""GrammarTrial: whether a grammar compiles in time, found out in a process of its own. Blocks; one thread at a time.

Bounds that are told from a schema (`schema_bounds.py`) are those of the shapes that somebody thought of. Of another one
llguidance may take minutes, in which it cannot be interrupted, recurses, takes memory, and in places holds the
interpreter's lock, so that nothing else runs in its process. A thread with a deadline would leave all that going on.

    the grammar          ──▶   child: processor time limited ▸ compiled, first mask computed
    none, or a refusal   ◀──   an answer
    `TooCostly`          ◀──   its pipe ends: it was killed, and the next trial has a new one

Where no process can be had, short grammars pass untried and others are refused, until it is time to try to have one.

What it costs: a grammar that is not known yet is compiled twice (a few milliseconds, as a rule), and the process, some
70 MB and half a second to start, which a server has from its first grammar on.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import structlog

from sessions.errors import Draining, InvalidRequest
from sessions.types import Grammar

log = structlog.get_logger(__name__)

MAX_STARVED: Final = 10
"""Times its processor time a trial may take on a busy machine."""
MAX_START_S: Final = 60.0
RETRY_START_S: Final = 30.0
"""After a process that could not be had: an attempt may take all of `MAX_START_S`, while everybody waits."""
MAX_UNTRIED_CHARACTERS: Final = 8_000
"""Of a grammar that passes untried. What is known to be costly is told from the schema whatever its length."""


class TooCostly(Exception):
    """It took more time or memory than it may."""


class Untriable(TooCostly):
    """There is no process to try it in, and it is too long to be compiled without."""


class GrammarTrial:
    """seconds: of processor time, for each grammar. is_kept: the process stays for the next one.

    tokenizer_json, eos_token_ids: as `GrammarCompiler` wants them.
    """

    def __init__(
        self, tokenizer_json: Callable[[], str], eos_token_ids: Sequence[int], seconds: float, *, is_kept: bool
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._eos_token_ids = eos_token_ids
        self._seconds = seconds
        self._is_kept = is_kept
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        """Of `_child` and `is_closed`: whichever is set last, no process is left that `close` did not end."""
        self.is_closed = False
        self._start_at = 0.0
        self._is_known_to_fail = False

    def __call__(self, grammar: Grammar) -> None:
        """Raises InvalidRequest as `GrammarCompiler.compile` does, TooCostly, and Draining once this is closed."""
        child = self._child or self._started()
        if child is None:
            if len(grammar.source) > MAX_UNTRIED_CHARACTERS:
                raise Untriable
            return
        answer = _asked(child, asdict(grammar), self._seconds * MAX_STARVED)
        if answer is None or not self._is_kept:
            self._end_child()
        if answer is None:
            self._refuse_if_closed()
            raise TooCostly
        if answer:
            raise InvalidRequest(**answer)

    def close(self) -> None:
        """Ends the process, for good. Any thread; who waits for an answer, or asks from now on, has Draining."""
        with self._lock:
            self.is_closed = True
        self._end_child()

    def _end_child(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _refuse_if_closed(self) -> None:
        if self.is_closed:
            raise Draining

    def _started(self) -> "subprocess.Popen[bytes] | None":
        """A new process; None if it cannot be had, or could not a moment ago."""
        self._refuse_if_closed()
        if time.monotonic() < self._start_at:
            return None
        try:
            child = self._spawned()
            if self._is_ready(child):
                self._is_known_to_fail = False
                return child
            reason = "it ended as it began, or did not begin in time"
        except OSError as error:
            reason = str(error)
        self._end_child()
        self._refuse_if_closed()
        self._start_at = time.monotonic() + RETRY_START_S
        if not self._is_known_to_fail:
            self._is_known_to_fail = True
            log.warning("no process to try grammars in: short ones are compiled untried, others refused", reason=reason)
        return None

    def _spawned(self) -> "subprocess.Popen[bytes]":
        """`_child` from its first moment, so that it can be ended. Raises OSError and Draining."""
        with self._lock:
            self._refuse_if_closed()
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "sessions.grammar_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # llguidance may quote what it panics about
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )
            return self._child

    def _is_ready(self, child: "subprocess.Popen[bytes]") -> bool:
        given = {
            "seconds": self._seconds,
            "tokenizer": self._tokenizer_json(),
            "eos_token_ids": [*self._eos_token_ids],
        }
        return _asked(child, given, MAX_START_S) is not None


def _asked(child: "subprocess.Popen[bytes]", question: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
    """The answer; None if the process is gone, or had no answer in time and so is ended."""
    assert child.stdin is not None
    assert child.stdout is not None
    timer = threading.Timer(timeout_s, child.kill)
    timer.start()
    try:
        child.stdin.write(json.dumps(question).encode() + b"\n")
        child.stdin.flush()
        line = child.stdout.readline()
    except (OSError, ValueError):  # the pipe broke, or was closed by `close`
        return None
    finally:
        timer.cancel()
    answer: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return answer


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    child.wait()
