"""Lanes: tenants take turns, no line grows for long, and what was too costly once is not tried again."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import pytest

from sessions.errors import Draining, InvalidRequest, Overloaded
from sessions.grammar_lane import MAX_COSTLY, _Costly
from sessions.grammars import Grammars
from sessions.types import Grammar
from tests.unit.sessions.trials import PATIENT_S, SLOW, Make, Trials, one_of, patient_one

QUICK_S = 0.15


def constant(number: int) -> Grammar:
    return Grammar("json_schema", json.dumps({"const": number}))


async def held(grammars: Grammars, trials: Trials) -> Callable[[], Awaitable[None]]:
    """The quick lane's process stands still while it tries a grammar of tenant a's, until the answer is called."""
    await grammars.compile(constant(-1))
    child = (await one_of(trials))[1]
    child.send_signal(signal.SIGSTOP)
    first = asyncio.ensure_future(grammars.compile(constant(0), "a"))
    await one_of(trials)

    async def resume() -> None:
        child.send_signal(signal.SIGCONT)
        await first

    return resume


async def test_what_is_too_costly_is_tried_once(make: Make, trials: Trials) -> None:
    """Also by those that waited behind it, and wherever in a request it stands."""
    grammars = make(0.1, 0.15)
    first, second = await asyncio.gather(
        *(grammars.compile(Grammar("json_schema", SLOW, param)) for param in ("here", "there")), return_exceptions=True
    )
    with pytest.raises(InvalidRequest) as third:
        await grammars.compile(Grammar("json_schema", SLOW, "here"))
    assert isinstance(first, InvalidRequest) and isinstance(second, InvalidRequest)
    assert (first.param, second.param, third.value.param) == ("here", "there", "here")
    assert first.message == third.value.message
    assert trials.qsize() == 2, "once in each lane"


async def test_what_is_known_to_be_too_costly_waits_for_nobody(make: Make, trials: Trials) -> None:
    grammars = make(30, 30)
    resume = await held(grammars, trials)
    for lane in (grammars._quick, grammars._patient):
        lane._costly.add("b", constant(1))
    with pytest.raises(InvalidRequest, match="more than 30 s"):
        await asyncio.wait_for(grammars.compile(constant(1), "b"), 5)
    await resume()
    assert (await grammars.compile(constant(1), "c")).constraint().error is None, "nobody is told of another's"


async def test_what_the_quick_lane_could_not_goes_to_the_other_at_once(make: Make, trials: Trials) -> None:
    grammars = make(QUICK_S, PATIENT_S)
    grammar = Grammar("json_schema", SLOW)
    await grammars.compile(grammar)
    grammars._prototypes.clear()
    await grammars.compile(grammar)
    assert trials.qsize() == 3


async def test_tenants_take_turns(make: Make, trials: Trials) -> None:
    grammars = make(30, 30)
    resume = await held(grammars, trials)
    others = [grammars.compile(constant(number), "a") for number in range(1, 5)]
    waiting = [asyncio.ensure_future(each) for each in (*others, grammars.compile(constant(5), "b"))]
    await asyncio.sleep(0)  # each stands in its line
    await resume()
    await asyncio.gather(*waiting)
    order = [json.loads(trials.get_nowait()[0])["const"] for _ in waiting]
    assert order == [5, 1, 2, 3, 4]


async def test_nobody_waits_long_behind_his_own(make: Make, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred at once: those whose turn does not come are told to come again, and the line is free for others."""
    monkeypatch.setattr("sessions.grammars.MAX_QUICK_WAIT_S", 0.1)
    monkeypatch.setattr("sessions.grammars.MAX_QUICK", 100)
    grammars = make(30, 30)
    resume = await held(grammars, trials)
    many = [grammars.compile(constant(number), "a") for number in range(1, 301)]
    answers = await asyncio.wait_for(asyncio.gather(*many, return_exceptions=True), 5)
    assert all(isinstance(answer, Overloaded) for answer in answers)
    await resume()
    assert (await grammars.compile(constant(301), "a")).constraint().error is None
    assert trials.qsize() == 1, "who was sent away is not tried"
    assert not grammars._quick._lines


async def test_a_line_is_bounded_for_each_tenant(make: Make, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.grammars.MAX_QUICK", 1)
    grammars = make(30, 30)
    resume = await held(grammars, trials)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(grammars.compile(constant(1), "a"), 5)
    other = asyncio.ensure_future(grammars.compile(constant(2), "b"))
    await asyncio.sleep(0)
    await resume()
    assert (await other).constraint().error is None


async def test_only_so_many_slow_ones_of_a_tenant_wait(
    make: Make, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.grammars.MAX_PATIENT", 1)
    grammars = make(QUICK_S, PATIENT_S)
    slow = asyncio.ensure_future(grammars.compile(Grammar("json_schema", SLOW), "a"))
    child = await patient_one(trials)
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(Overloaded):
        await grammars.compile(Grammar("json_schema", SLOW + " "), "a")
    other = asyncio.ensure_future(grammars.compile(Grammar("json_schema", SLOW + "  "), "b"))
    child.send_signal(signal.SIGCONT)
    assert (await slow).constraint().error is None
    assert (await other).constraint().error is None
    assert (await grammars.compile(Grammar("json_schema", SLOW + "   "), "a")).constraint().error is None


async def test_closing_sends_away_who_waits(make: Make, trials: Trials) -> None:
    grammars = make(30, 30)
    resume = await held(grammars, trials)
    waiting = [asyncio.ensure_future(grammars.compile(constant(n), tenant)) for n, tenant in ((1, "a"), (2, "b"))]
    await asyncio.sleep(0)
    grammars.close()
    for each in waiting:
        with pytest.raises(Draining):
            await asyncio.wait_for(each, 5)
    with pytest.raises(Draining):
        await resume()


def test_of_what_was_too_costly_the_latest_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    costly = _Costly()
    for number in range(MAX_COSTLY + 1):
        costly.add("a", constant(number))
    assert [("a", constant(number)) in costly for number in (0, 1, MAX_COSTLY)] == [False, True, True]
    assert ("b", constant(1)) not in costly
    assert ("a", Grammar("json_schema", constant(1).source, is_lenient=True)) not in costly
    assert ("a", Grammar("lark", constant(1).source)) not in costly
    monkeypatch.setattr("sessions.grammar_lane.COSTLY_S", 0.0)
    costly.add("a", constant(1))
    assert ("a", constant(1)) not in costly
