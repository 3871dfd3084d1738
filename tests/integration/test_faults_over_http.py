"""The server behind the trie fails in every way we know of, under traffic: Redis is a hint, so that costs no request.

A whole server on a real Valkey, asked by the real client in several conversations at once; a peer is alive, so the trie
stands on the way of every request. Before, during and after each fault

* every reply is the fake model's, and every turn after the first finds in the pool what was computed before it;
* no request takes longer than the slowest without a fault and the one configured timeout;
* `/ready` is 200 and says what `/metrics` says: that the index is down, refuses writes or was told everything anew;

and once the server is well, Redis claims for the replica every block of every prompt it was ever asked.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import pytest
from openai import AsyncOpenAI

from sessions.index import IndexSettings
from tests.integration.index.index_servers import DistantServer, ValkeyServer, eventually
from tests.integration.redis_faults import (
    emptied,
    frozen,
    killed,
    out_of_memory,
    read_only,
    restarted,
    saying,
    slow_by,
)
from tests.integration.replicas import (
    BLOCK_SIZE,
    Look,
    Replica,
    ask,
    look,
    num_claimed,
    num_common,
    peer,
    prompt_ids,
    reply_ids,
    text_of,
)

TIMEOUT_S = 0.1
QUICK = IndexSettings(timeout_s=TIMEOUT_S, beat_s=0.1, lease_s=0.6, breaker_open_s=0.1, cut_delay_s=0.03)
NUM_CONVERSATIONS = 6
NUM_TURNS = 4
ENOUGH_REQUESTS = 40
FAULT_S = QUICK.lease_s + 0.2
"""Longer than a lease: whoever cannot renew has been given up by then."""
MARGIN_S = 0.25
"""What a busy machine may add. Conversations that queued for one timeout after another would be past it."""


# -- traffic --


class Span(NamedTuple):
    """From a request's start to its last byte, as its client saw it."""

    started_at: float
    ended_at: float


@dataclass
class Traffic:
    """Conversations without end, several at once, every other one streamed. Each reply is judged as it comes."""

    client: AsyncOpenAI
    spans: list[Span] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    is_over: bool = False

    async def converse(self, lane: int) -> None:
        for number in itertools.count():
            messages = [{"role": "system", "content": "You are terse, and you never answer a question in full."}]
            computed: list[int] = []
            for turn in range(NUM_TURNS):
                if self.is_over:
                    return
                messages.append({"role": "user", "content": f"Lane {lane}, conversation {number}, question {turn}?"})
                computed = await self._take_turn(messages, computed, stream=lane % 2 == 0)
                # The client keeps a reply of its own, so that what is asked does not hang on what is answered.
                messages.append({"role": "assistant", "content": "An answer."})

    async def more(self, num_requests: int, *, for_s: float = 0.0) -> None:
        """Wait until so many more requests were answered, and for at least so long."""
        enough, ends_at = len(self.spans) + num_requests, time.monotonic() + for_s
        await eventually(lambda: len(self.spans) >= enough and time.monotonic() >= ends_at, within_s=20)

    async def _take_turn(self, messages: list[dict[str, str]], computed: list[int], *, stream: bool) -> list[int]:
        """Ask, judge, and return the ids whose KV the pool holds from now on."""
        prompt = prompt_ids(messages)
        expected = reply_ids(prompt)
        started_at = time.monotonic()
        reply = await ask(self.client, messages, stream=stream)
        self.spans.append(Span(started_at, time.monotonic()))
        self.prompts.append(prompt)
        assert reply.text == text_of(expected)
        assert not computed or reply.num_cached_tokens == num_common(computed, prompt[:-1])
        return [*prompt, *expected[:-1]]


@contextlib.asynccontextmanager
async def traffic(replica: Replica) -> AsyncIterator[Traffic]:
    async with replica.async_client() as client, asyncio.TaskGroup() as group:
        await client.models.list()  # the first request of a client pays for its TLS context
        running = Traffic(client)
        for lane in range(NUM_CONVERSATIONS):
            group.create_task(running.converse(lane))
        yield running
        running.is_over = True


# -- faults --


def is_down(before: Look, now: Look) -> bool:
    return now.state == "down" and now.counters["errors"] > before.counters["errors"]


def refuses_writes(before: Look, now: Look) -> bool:
    return now.state == "read_only"


def was_told_anew(before: Look, now: Look) -> bool:
    return now.counters["resyncs"] > before.counters["resyncs"]


def is_well(before: Look, now: Look) -> bool:
    return now.state == "redis" and now.counters["lookups"] > before.counters["lookups"]


class Fault(NamedTuple):
    """`happen` breaks the server and mends it; `tells` is what `/metrics` must come to say meanwhile."""

    happen: Callable[[Any], AbstractContextManager[None]]
    tells: Callable[[Look, Look], bool]
    server: type[ValkeyServer] = ValkeyServer


FAULTS = {
    "killed": Fault(killed, is_down),
    "frozen": Fault(frozen, is_down),
    "emptied": Fault(emptied, was_told_anew),
    "restarted from nothing": Fault(restarted, was_told_anew),
    "out of memory": Fault(out_of_memory, refuses_writes),
    "read-only": Fault(read_only, refuses_writes),
    "slower than the timeout": Fault(slow_by(3 * TIMEOUT_S), is_down, DistantServer),
    "slow": Fault(slow_by(TIMEOUT_S / 10), is_well, DistantServer),
    "another protocol": Fault(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), is_down),
    "a reply without end": Fault(saying(b"*1000000\r\n"), is_down),
}


# -- the tests --

MakeServer = Callable[[type[ValkeyServer]], ValkeyServer]


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> Iterator[None]:
    """A full collection over all that was ever imported stops every thread for 0.4 s: spare it what will stay."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def servers() -> Iterator[MakeServer]:
    """Makes a server, not started; ends it."""
    with contextlib.ExitStack() as stack:

        def make(kind: type[ValkeyServer]) -> ValkeyServer:
            server = kind()
            stack.callback(server.kill)
            return server

        yield make


@contextlib.asynccontextmanager
async def serving(url: str) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
    """A replica with a peer beside it, and its operator's client."""
    with Replica(url, QUICK) as replica:
        other = peer(url, QUICK)
        other.start()
        try:
            async with httpx.AsyncClient(base_url=replica.origin) as operator:
                yield replica, operator
        finally:
            await asyncio.to_thread(other.stop)


@contextlib.asynccontextmanager
async def happening(fault: Fault, server: ValkeyServer) -> AsyncIterator[None]:
    """The fault, brought about and mended off the loop on which requests are timed."""
    happens = fault.happen(server)
    await asyncio.to_thread(happens.__enter__)
    yield
    await asyncio.to_thread(happens.__exit__, None, None, None)


async def told(operator: httpx.AsyncClient, tells: Callable[[Look], bool]) -> Look:
    """Wait until `/metrics` tells and `/ready` agrees; meanwhile `/ready` is 200 all the time."""
    deadline = time.monotonic() + 10
    while True:
        seen = await look(operator)
        assert seen.ready_status == 200
        if seen.ready_index == seen.state and tells(seen):
            return seen
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.02)


async def recovered(operator: httpx.AsyncClient) -> None:
    """The index is up, and what it is asked it answers: some lookups in a row, and no error among them."""

    def answers(before: Look, now: Look) -> bool:
        return now.state == "redis" and now.counters["lookups"] >= before.counters["lookups"] + 10

    async with asyncio.timeout(10):
        seen = [await told(operator, lambda now: now.state == "redis")]
        while len(seen) < 2 or seen[-1].counters["errors"] != seen[-2].counters["errors"]:
            seen.append(await told(operator, functools.partial(answers, seen[-1])))


async def claimed_again(replica: Replica, server: ValkeyServer, prompts: list[list[int]]) -> None:
    def is_claimed(prompt: list[int]) -> bool:
        return num_claimed(server.port, prompt, replica.incarnation) == len(prompt) // BLOCK_SIZE

    for prompt in prompts:
        await eventually(functools.partial(is_claimed, prompt))


def expect_in_time(spans: list[Span], fault_at: float, healed_at: float) -> None:
    times: dict[bool, list[float]] = {True: [], False: []}
    for span in spans:
        times[span.ended_at > fault_at and span.started_at < healed_at].append(span.ended_at - span.started_at)
    assert len(times[False]) >= ENOUGH_REQUESTS
    assert max(times[True]) < max(times[False]) + TIMEOUT_S + MARGIN_S


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_costs_no_request(fault: Fault, servers: MakeServer) -> None:
    server = servers(fault.server)
    server.start()
    async with serving(server.url) as (replica, operator):
        async with traffic(replica) as running:
            before = await told(operator, lambda now: now.state == "redis" and now.counters["lookups"] > 0)
            await running.more(ENOUGH_REQUESTS)
            fault_at = time.monotonic()
            async with happening(fault, server):
                await told(operator, lambda now: fault.tells(before, now))
                await running.more(ENOUGH_REQUESTS, for_s=FAULT_S)
                await told(operator, lambda now: fault.tells(before, now))
            await recovered(operator)
            healed_at = time.monotonic()
            await running.more(ENOUGH_REQUESTS)
        expect_in_time(running.spans, fault_at, healed_at)
        await claimed_again(replica, server, running.prompts)


async def test_absent_at_start_and_appearing_later(servers: MakeServer) -> None:
    server = servers(ValkeyServer)
    async with serving(server.url) as (replica, operator):
        async with traffic(replica) as running:
            fault_at = time.monotonic()
            await told(operator, lambda now: now.state == "down" and now.counters["errors"] > 0)
            await running.more(ENOUGH_REQUESTS, for_s=FAULT_S)
            await asyncio.to_thread(server.start)
            await recovered(operator)
            healed_at = time.monotonic()
            await running.more(2 * ENOUGH_REQUESTS)
        expect_in_time(running.spans, fault_at, healed_at)
        await claimed_again(replica, server, running.prompts)
