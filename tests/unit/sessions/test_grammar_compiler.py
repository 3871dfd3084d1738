"""GrammarCompiler on many threads; what it compiles is `test_grammars.py`'s."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sessions import grammar_compiler


def test_the_size_of_stacks_is_set_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one for the whole process: a second that set it between would restore the first's."""
    calls: list[tuple[int, int]] = []
    both = threading.Barrier(2)
    size = 0

    def stack_size(new: int) -> int:
        nonlocal size
        before, size = size, new
        calls.append((threading.get_ident(), new))
        if new:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.2)  # the other gets here, if it may
        return before

    monkeypatch.setattr(threading, "stack_size", stack_size)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda number: grammar_compiler._on_deep_stack(lambda: number), range(2)))
    assert results == [0, 1]
    assert size == 0
    assert [new for _, new in calls] == [grammar_compiler.COMPILE_STACK_BYTES, 0] * 2
    assert calls[0][0] == calls[1][0]
