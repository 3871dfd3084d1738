"""So much at once and no more, whoever leaves."""

import asyncio
import threading

import pytest

from sessions.long_work import LongWork


async def test_no_more_runs_at_once_than_there_are_places() -> None:
    apart, lock = LongWork(2), threading.Lock()
    together = threading.Barrier(2)
    num_running, most = 0, 0

    def work(number: int) -> int:
        nonlocal num_running, most
        with lock:
            num_running += 1
            most = max(most, num_running)
        together.wait(20)
        with lock:
            num_running -= 1
        return number

    assert await asyncio.gather(*(apart(work, number) for number in range(8))) == list(range(8))
    assert most == 2


async def test_what_nobody_waits_for_any_more_keeps_its_place_until_it_is_done() -> None:
    apart, begun, release = LongWork(1), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(20)
        raise ValueError

    left = asyncio.ensure_future(apart(work))
    await asyncio.to_thread(begun.wait, 20)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    ran = threading.Event()
    waiting = asyncio.ensure_future(apart(ran.set))
    assert not await asyncio.to_thread(ran.wait, 0.1)
    release.set()
    await waiting
    assert ran.is_set()


async def test_what_goes_wrong_is_told_and_frees_the_place() -> None:
    apart = LongWork(1)
    for _ in range(2):
        with pytest.raises(ValueError):
            await apart(int, "x")
