"""Trials: what takes too long to compile is killed and refused by name, and others go on being served."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from queue import Queue
from typing import Any

import pytest
import structlog

from sessions import grammar_trial
from sessions.errors import Draining, InvalidRequest
from sessions.types import Grammar
from tests.unit.sessions.trials import PATIENT_S, SLOW, Make, Trials, patient_one

SLOW_ONE = Grammar("json_schema", SLOW, "here")
QUICK = Grammar("json_schema", json.dumps({"const": 1}))
OTHER = Grammar("json_schema", json.dumps({"const": 2}))


async def test_what_takes_too_long_is_refused_by_name_and_others_are_not(make: Make) -> None:
    grammars = make(0.1, 0.15)
    with pytest.raises(InvalidRequest, match=r"more than 0\.15 s") as refused:
        await grammars.compile(SLOW_ONE)
    assert (refused.value.param, refused.value.code) == ("here", "invalid_value")
    assert (await grammars.compile(QUICK)).constraint().error is None


async def test_what_is_slow_has_its_time_elsewhere(make: Make) -> None:
    """And the process that it had is gone; the other stays."""
    grammars = make(0.15, PATIENT_S)
    assert (await grammars.compile(SLOW_ONE)).constraint().error is None
    assert grammars._patient.trial._child is None
    await grammars.compile(QUICK)
    child = grammars._quick.trial._child
    await grammars.compile(OTHER)
    assert grammars._quick.trial._child is child is not None


async def test_others_do_not_wait_for_what_is_slow(make: Make, trials: Trials) -> None:
    grammars = make(0.15, PATIENT_S)
    slow = asyncio.ensure_future(grammars.compile(SLOW_ONE))
    child = await patient_one(trials)
    child.send_signal(signal.SIGSTOP)
    assert (await grammars.compile(QUICK)).constraint().error is None
    assert not slow.done()
    child.kill()
    with pytest.raises(InvalidRequest):
        await slow


async def test_a_process_that_hangs_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = make(30, 30)
    await grammars.compile(QUICK)
    child = grammars._quick.trial._child
    assert child is not None
    child.send_signal(signal.SIGSTOP)
    monkeypatch.setattr("sessions.grammar_trial.MAX_STARVED", 0.03)
    assert (await grammars.compile(OTHER)).constraint().error is None
    assert child.poll() == -signal.SIGKILL


async def test_a_process_that_died_is_replaced(make: Make) -> None:
    grammars = make(30, 30)
    await grammars.compile(QUICK)
    child = grammars._quick.trial._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    assert (await grammars.compile(OTHER)).constraint().error is None
    assert (await grammars.compile(Grammar("json_schema", '{"const": 3}'))).constraint().error is None
    assert grammars._quick.trial._child not in (None, child)


async def test_a_refusal_comes_over_as_it_is(make: Make) -> None:
    part = Grammar("json_schema", json.dumps({"not": {}}), "tools[1].function.parameters")
    whole = Grammar("lark", f"start: %json {part.source}", "tools", parts=(part,))
    with pytest.raises(InvalidRequest, match='"not"') as refused:
        await make(30, 30).compile(whole)
    assert (refused.value.param, refused.value.code) == (part.param, "invalid_value")


@pytest.mark.parametrize("executable", ["/nowhere", "/bin/false"])
async def test_where_no_process_can_be_had_grammars_are_served(
    make: Make, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    grammars = make(30, 30)
    assert (await grammars.compile(QUICK)).constraint().error is None
    with pytest.raises(InvalidRequest, match='"not"'):
        await grammars.compile(Grammar("json_schema", json.dumps({"not": {}})))


@pytest.mark.parametrize("executable", ["/nowhere", "/bin/false"])
async def test_without_a_process_long_grammars_are_refused_and_few_are_begun(
    make: Make, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    """Until there is one: nothing is remembered of what was refused for want of it."""
    num_begun = [0, 0]
    spawned = grammar_trial.GrammarTrial._spawned

    def counted(trial: grammar_trial.GrammarTrial) -> Any:
        num_begun[trial._is_kept] += 1
        return spawned(trial)

    monkeypatch.setattr(grammar_trial.GrammarTrial, "_spawned", counted)
    long = Grammar("json_schema", json.dumps({"const": "x" * grammar_trial.MAX_UNTRIED_CHARACTERS}), "here")
    grammars = make(30, 30)
    with structlog.testing.capture_logs() as logs, monkeypatch.context() as broken:
        broken.setattr(sys, "executable", executable)
        for _ in range(2):
            await grammars.compile(QUICK)
            await grammars.compile(OTHER)
            with pytest.raises(InvalidRequest, match="costly") as refused:
                await grammars.compile(long)
            assert (refused.value.param, refused.value.code) == ("here", "invalid_value")
        assert num_begun == [1, 1], "once by each lane, and then not for a while"
        grammars._quick.trial._start_at = 0  # the while is over
        with pytest.raises(InvalidRequest, match="costly"):
            await grammars.compile(long)
        assert num_begun == [1, 2]
    assert [log["log_level"] for log in logs] == ["warning", "warning"], "once by each lane"
    grammars._quick.trial._start_at = 0
    assert (await grammars.compile(long)).constraint().error is None
    assert num_begun == [1, 3]


async def test_closing_waits_for_no_trial(make: Make, trials: Trials) -> None:
    grammars = make(0.15, PATIENT_S)
    slow = asyncio.ensure_future(grammars.compile(SLOW_ONE))
    child = await patient_one(trials)
    child.send_signal(signal.SIGSTOP)
    grammars.close()
    with pytest.raises(Draining):
        await slow
    assert child.poll() is not None


async def test_closing_ends_a_process_that_only_begins(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: Queue[subprocess.Popen[bytes]] = Queue()
    ask = grammar_trial._asked

    def asked(child: subprocess.Popen[bytes], question: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        child.send_signal(signal.SIGSTOP)
        begun.put(child)
        return ask(child, question, timeout_s)

    monkeypatch.setattr(grammar_trial, "_asked", asked)
    monkeypatch.setattr(grammar_trial, "MAX_START_S", 5.0)
    grammars = make(30, 30)
    first, second = (asyncio.ensure_future(grammars.compile(each)) for each in (QUICK, OTHER))
    child = await asyncio.to_thread(begun.get, timeout=20)
    grammars.close()
    assert child.poll() == -signal.SIGKILL
    for each in (first, second, grammars.compile(QUICK)):
        with pytest.raises(Draining):
            await each
    assert begun.empty(), "none is begun after it"
