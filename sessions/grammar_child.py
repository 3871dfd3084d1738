"""The process of a `GrammarTrial`: compiles what it is sent, and is killed by the kernel when its processor time is up.

    stdin    {"seconds", "tokenizer", "eos_token_ids"}, then a grammar a line
    stdout   {} once it is ready, then for each grammar {}, or {"message", "param", "code"} of its refusal

It ends with its stdin, so it never outlives its parent by more than one grammar.
"""

import json
import signal
import sys
from typing import Any, Final

from sessions.errors import InvalidRequest
from sessions.grammar_compiler import GrammarCompiler
from sessions.types import Grammar

if sys.platform != "win32":
    import resource

MAX_MEMORY_BYTES: Final = 2 << 30
"""Of address space: what a grammar asks for beyond it ends the process, as too much time does."""


def main() -> None:
    given = json.loads(sys.stdin.buffer.readline())
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    compiler = GrammarCompiler(given["tokenizer"], given["eos_token_ids"])
    _say({})
    for line in sys.stdin.buffer:
        _limit_time(given["seconds"])
        answer = _answer(compiler, _grammar(json.loads(line)))
        _limit_time(0)
        _say(answer)


def _limit_time(seconds: float) -> None:
    """Of the processor: how busy the machine is does not decide what is refused. 0: no limit."""
    if sys.platform != "win32":
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(compiler: GrammarCompiler, grammar: Grammar) -> dict[str, str | None]:
    try:
        compiler.compile(grammar)
    except InvalidRequest as error:
        return {"message": error.message, "param": error.param, "code": error.code}
    return {}


def _grammar(written: dict[str, Any]) -> Grammar:
    return Grammar(**{**written, "parts": tuple(map(_grammar, written["parts"]))})


def _say(answer: dict[str, str | None]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
