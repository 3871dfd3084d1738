"""GrammarTrial: whether a grammar compiles in time, found out in a process of its own. Blocks; one thread at a time.

Bounds that are told from a schema (`schema_bounds.py`) are those of the shapes that somebody thought of. Of another one
llguidance may take minutes, in which it cannot be interrupted, recurses, takes memory, and in places holds the
interpreter's lock, so that nothing else runs in its process. A thread with a deadline would leave all that going on.

    the grammar          ──▶   child: processor time limited ▸ compiled, first mask computed
    none, or a refusal   ◀──   an answer
    `TooCostly`          ◀──   its pipe ends: it was killed, and the next trial has a new one

What it costs: a grammar that is not known yet is compiled twice (a few milliseconds, as a rule), and the process, some
70 MB and half a second to start, which a server has from its first grammar on.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import structlog

from sessions.errors import InvalidRequest
from sessions.types import Grammar

log = structlog.get_logger(__name__)

MAX_STARVED: Final = 10
"""Times its processor time a trial may take on a busy machine."""
MAX_START_S: Final = 60.0


class TooCostly(Exception):
    """It took more time or memory than it may."""


class GrammarTrial:
    """seconds: of processor time, for each grammar. is_kept: the process stays for the next one.

    tokenizer_json, eos_token_ids: as `GrammarCompiler` wants them. Where no process can be had, every grammar passes.
    """

    def __init__(
        self, tokenizer_json: Callable[[], str], eos_token_ids: Sequence[int], seconds: float, *, is_kept: bool
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._eos_token_ids = eos_token_ids
        self._seconds = seconds
        self._is_kept = is_kept
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, grammar: Grammar) -> None:
        """Raises InvalidRequest as `GrammarCompiler.compile` does, and TooCostly."""
        child = self._child = self._child or self._spawned()
        if child is None:
            return
        answer = _asked(child, asdict(grammar), self._seconds * MAX_STARVED)
        if answer is None or not self._is_kept:
            self.close()
        if answer is None:
            raise TooCostly
        if answer:
            raise InvalidRequest(**answer)

    def close(self) -> None:
        """Ends the process. Any thread; who waits for an answer has TooCostly."""
        child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _spawned(self) -> "subprocess.Popen[bytes] | None":
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "sessions.grammar_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # llguidance may quote what it panics about
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )
        except OSError as error:
            log.warning("grammars are compiled untried: no process for them", error=str(error))
            return None
        given = {
            "seconds": self._seconds,
            "tokenizer": self._tokenizer_json(),
            "eos_token_ids": [*self._eos_token_ids],
        }
        if _asked(child, given, MAX_START_S) is None:
            _end(child)
            log.warning("grammars are compiled untried: the process for them ended as it began")
            return None
        return child


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
