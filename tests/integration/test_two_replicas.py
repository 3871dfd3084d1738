"""Two whole servers on one Redis: what one computed, the other is told of, as far as it may be and while it is true."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from multiprocessing.connection import Connection

import httpx
import pytest
from openai import AsyncOpenAI

from sessions.index import IndexSettings, PrefixIndex
from sessions.trie import Incarnation
from sessions.types import Tenant
from tests.contract.conftest import DEADLINE_S
from tests.integration.index.index_servers import ValkeyServer, eventually
from tests.integration.replicas import (
    BLOCK_SIZE,
    Messages,
    Replica,
    ask,
    block_hashes,
    look,
    num_claimed,
    num_common,
    peer,
    prompt_ids,
    reply_ids,
    text_of,
)

SYSTEM = {"role": "system", "content": "You answer in one sentence, and you never say more than you were asked for."}
WEATHER = [SYSTEM, {"role": "user", "content": "What will the weather be like in Ulaanbaatar on the first of May?"}]
NEWS = [SYSTEM, {"role": "user", "content": "What is new in the world of the very small, and who has seen it?"}]
NUM_SHARED_BLOCKS = num_common(prompt_ids(WEATHER), prompt_ids(NEWS)) // BLOCK_SIZE
PATIENT = IndexSettings(timeout_s=5.0, beat_s=0.1, lease_s=2.0)
"""Nothing is timed here, so a busy machine may take its time."""
KEYS = "alice=sk-alice,bob=sk-bob"


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def beside(index: PrefixIndex) -> AsyncIterator[PrefixIndex]:
    index.start()
    try:
        yield index
    finally:
        await asyncio.to_thread(index.stop)


def num_blocks(messages: Messages) -> int:
    return len(prompt_ids(messages)) // BLOCK_SIZE


async def computes(client: AsyncOpenAI, messages: Messages) -> None:
    """The replica behind `client` answers, and right."""
    assert (await ask(client, messages)).text == text_of(reply_ids(prompt_ids(messages)))


async def claims(server: ValkeyServer, who: Incarnation, messages: Messages, tenant: str = Tenant().id) -> None:
    """Wait until Redis has been told that `who` holds every block of the prompt."""
    prompt = prompt_ids(messages)
    await eventually(lambda: num_claimed(server.port, prompt, who, tenant) == num_blocks(messages))


async def sees(replica: Replica, messages: Messages, num_blocks_elsewhere: int) -> None:
    """Wait until `replica`, were it asked for the prompt now, would be told of so many blocks elsewhere."""
    root, *hashes = block_hashes(prompt_ids(messages))
    deadline = time.monotonic() + DEADLINE_S
    while True:
        asking = asyncio.run_coroutine_threadsafe(replica.service.index.lookup(root, hashes), replica.loop)
        lookup = await asyncio.wrap_future(asking)
        if lookup is not None and lookup.num_other_blocks == num_blocks_elsewhere:
            return
        assert time.monotonic() < deadline, lookup
        await asyncio.sleep(0.02)


async def tokens_elsewhere(replica: Replica, messages: Messages, *, key: str = "none") -> int:
    """Ask `replica`, which asks the trie once; the prompt tokens that only another replica holds, as it counts them."""
    await eventually(replica.service.index.should_ask)
    async with httpx.AsyncClient(base_url=replica.origin) as operator, replica.async_client(api_key=key) as client:
        before = (await look(operator)).counters
        await computes(client, messages)
        after = (await look(operator)).counters
    assert after["lookups"] == before["lookups"] + 1
    assert after["errors"] == before["errors"]
    return after["elsewhere_tokens"] - before["elsewhere_tokens"]


async def test_what_only_the_other_holds_is_counted_to_the_block(server: ValkeyServer) -> None:
    """Nothing is counted twice: not what is held here as well, and not what is held nowhere."""
    with Replica(server.url, PATIENT) as a, Replica(server.url, PATIENT) as b:
        async with a.async_client() as client:
            await computes(client, WEATHER)
        await claims(server, a.incarnation, WEATHER)
        assert await tokens_elsewhere(b, NEWS) == NUM_SHARED_BLOCKS * BLOCK_SIZE
        assert await tokens_elsewhere(b, WEATHER) == (num_blocks(WEATHER) - NUM_SHARED_BLOCKS) * BLOCK_SIZE
        further = [*WEATHER, {"role": "assistant", "content": "Mild."}, {"role": "user", "content": "And in June?"}]
        assert await tokens_elsewhere(b, further) == 0


async def test_a_prompt_that_the_pool_covers_is_asked_of_nobody(server: ValkeyServer) -> None:
    with Replica(server.url, PATIENT) as a, Replica(server.url, PATIENT) as b:
        async with b.async_client() as client, httpx.AsyncClient(base_url=b.origin) as operator:
            await computes(client, WEATHER)
            await eventually(b.service.index.should_ask)
            before = (await look(operator)).counters["lookups"]
            await computes(client, WEATHER)
            assert (await look(operator)).counters["lookups"] == before
            await computes(client, NEWS)
            assert (await look(operator)).counters["lookups"] == before + 1
        assert a.incarnation != b.incarnation


def serve_until_killed(url: str, port: Connection) -> None:
    """A process of its own: one replica, which ends with its parent at the latest."""
    with Replica(url, PATIENT) as replica:
        port.send((replica.port, replica.incarnation))
        with contextlib.suppress(EOFError):
            port.recv()


@contextlib.contextmanager
def replica_process(url: str) -> Iterator[tuple[multiprocessing.process.BaseProcess, str, Incarnation]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_until_killed, args=(url, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the replica did not start"
        port, incarnation = ours.recv()
        yield process, f"http://127.0.0.1:{port}/v1", incarnation
    finally:
        process.kill()
        process.join(DEADLINE_S)
        ours.close()


async def test_the_dead_hold_nothing(server: ValkeyServer) -> None:
    """SIGKILL says no goodbye: the claims stay in Redis, but they count no longer than the lease."""
    with replica_process(server.url) as (process, base_url, a), Replica(server.url, PATIENT) as b:
        async with beside(peer(server.url, PATIENT)) as _, AsyncOpenAI(base_url=base_url, api_key="none") as client:
            await computes(client, WEATHER)
            await computes(client, NEWS)
            await sees(b, NEWS, num_blocks(NEWS))
            assert await tokens_elsewhere(b, WEATHER) == num_blocks(WEATHER) * BLOCK_SIZE
            process.kill()
            await sees(b, NEWS, 0)
            assert num_claimed(server.port, prompt_ids(NEWS), a) == num_blocks(NEWS)
            assert await tokens_elsewhere(b, NEWS) == 0


async def test_a_tenant_never_sees_what_another_holds(server: ValkeyServer) -> None:
    with Replica(server.url, PATIENT, api_keys=KEYS) as a, Replica(server.url, PATIENT, api_keys=KEYS) as b:
        async with a.async_client(api_key="sk-alice") as client:
            await computes(client, WEATHER)
        await claims(server, a.incarnation, WEATHER, "alice")
        assert await tokens_elsewhere(b, WEATHER, key="sk-bob") == 0
        assert await tokens_elsewhere(b, WEATHER, key="sk-alice") == num_blocks(WEATHER) * BLOCK_SIZE


async def test_replicas_of_different_secrets_do_not_meet(server: ValkeyServer) -> None:
    other_secret = bytes(reversed(range(32)))
    with (
        Replica(server.url, PATIENT) as a,
        Replica(server.url, PATIENT, secret=other_secret) as b,
        Replica(server.url, PATIENT) as c,
    ):
        async with a.async_client() as client:
            await computes(client, WEATHER)
        await claims(server, a.incarnation, WEATHER)
        await eventually(lambda: b.service.index.state == "redis")
        assert not b.service.index.should_ask()
        async with beside(peer(server.url, PATIENT, secret=other_secret)):
            assert await tokens_elsewhere(b, WEATHER) == 0
        assert await tokens_elsewhere(c, WEATHER) == num_blocks(WEATHER) * BLOCK_SIZE


async def test_after_both_restart_nothing_stale_is_counted(server: ValkeyServer) -> None:
    """Redis still has the claims of the former two, and they count for nobody; the claims of the new ones do."""
    with Replica(server.url, PATIENT) as former_a, Replica(server.url, PATIENT) as former_b:
        for replica in (former_a, former_b):
            async with replica.async_client() as client:
                await computes(client, WEATHER)
            await claims(server, replica.incarnation, WEATHER)
    with Replica(server.url, PATIENT) as a, Replica(server.url, PATIENT) as b:
        for replica in (former_a, former_b):
            assert num_claimed(server.port, prompt_ids(WEATHER), replica.incarnation) == num_blocks(WEATHER)
        assert await tokens_elsewhere(b, WEATHER) == 0
        await claims(server, b.incarnation, WEATHER)
        assert await tokens_elsewhere(a, NEWS) == NUM_SHARED_BLOCKS * BLOCK_SIZE
