"""kill -9 under traffic, start again: old conversations go on where they were, from disk, with the same answers.

Whole servers in processes of their own, over the fake model, whose next token hangs on the KV of every token before.
"""

import asyncio
import contextlib
import multiprocessing
import random
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from proxy.settings import Settings
from sessions.hashing import root_hash, tenant_key
from sessions.service import ChatService
from sessions.startup import ServiceOptions
from sessions.tiers.segment_file import SegmentFormat
from sessions.tiers.segment_folder import SegmentFolder
from sessions.tiers.segment_store import SegmentStore
from tests.contract.conftest import DEADLINE_S, RunningServer, shared_tokenizer
from tests.fakes import ROOT_FIELDS, FakeRunner, open_fake_service
from tests.integration.replicas import (
    BLOCK_SIZE,
    MAX_TOKENS,
    SECRET,
    Messages,
    Reply,
    ask,
    prompt_ids,
    reply_ids,
    text_of,
)

DISK_BYTES = 64 * 2**20
NUM_KILLS = 20


class DiskServer(RunningServer):
    def __init__(self, folder: Path, num_blocks: int) -> None:
        super().__init__(Settings(), {})
        self._folder, self._num_blocks = folder, num_blocks

    async def _open(self, _: ServiceOptions) -> ChatService:
        self.service = await open_fake_service(
            tokenizer=shared_tokenizer(), disk=(self._folder, DISK_BYTES), num_blocks=self._num_blocks
        )
        # The fake model computes faster than any disk reads: 1 token/s is what it shall have been measured at.
        self.service.engine.scheduler.prefill_rate.observe(10_000, 10_000.0)
        return self.service


def serve(folder: Path, num_blocks: int, pipe: Connection) -> None:
    """Until told to stop, or killed."""
    server = DiskServer(folder, num_blocks)
    server.start()
    pipe.send(server.port)
    with contextlib.suppress(EOFError):
        pipe.recv()
    server.stop()


class ServerProcess:
    def __init__(self, folder: Path, num_blocks: int = 2048) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "tests.integration.warm"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(folder, num_blocks, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.poll(60), "the server did not start"
        self.origin = f"http://127.0.0.1:{self._pipe.recv()}"

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.origin + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_S)

    async def metric(self, name: str) -> int:
        async with httpx.AsyncClient(base_url=self.origin) as operator:
            text = (await operator.get("/metrics")).text
        [value] = re.findall(rf"^anaphora_{name} (\S+)$", text, re.MULTILINE)
        return int(float(value))

    async def metric_reaches(self, name: str, value: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while await self.metric(name) < value:
            assert time.monotonic() < deadline, f"{name} is {await self.metric(name)}, not {value}"
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(DEADLINE_S)
        self._pipe.close()

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(DEADLINE_S)
        assert self._process.exitcode == 0


@contextlib.contextmanager
def serving(folder: Path, num_blocks: int = 2048) -> Iterator[ServerProcess]:
    process = ServerProcess(folder, num_blocks)
    try:
        yield process
    finally:
        process.kill()


def store_of(folder: Path) -> SegmentStore:
    """The folder as the servers open it."""
    runner = FakeRunner(1, BLOCK_SIZE, 1)
    namespace = root_hash(ROOT_FIELDS, tenant_key(SECRET, "", None))
    form = SegmentFormat(BLOCK_SIZE, runner.block_bytes, namespace, runner.layout)
    return SegmentStore(SegmentFolder(folder, form), DISK_BYTES)


def opening(name: str) -> list[dict[str, str]]:
    words = " ".join(random.Random(name).choices(["the", "tide", "was", "out", "and", "gulls", "called"], k=80))
    return [{"role": "user", "content": f"{name}: {words}"}]


def next_turn(messages: Messages) -> list[dict[str, str]]:
    """The client says that the assistant said something else: only the prompt before can be reused, to the token."""
    return [
        *messages,
        {"role": "assistant", "content": "So it was."},
        {"role": "user", "content": f"go on, {len(messages)}"},
    ]


async def answers(client: AsyncOpenAI, messages: Messages) -> Reply:
    """The reply, which is right."""
    reply = await ask(client, messages)
    assert reply.text == text_of(reply_ids(prompt_ids(messages)))
    return reply


async def chatter(client: AsyncOpenAI, draw: random.Random) -> None:
    """Strangers' traffic until the server is gone."""
    with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):
        while True:
            messages = opening(str(draw.random()))
            for _ in range(draw.randint(1, 3)):
                await answers(client, messages)
                messages = next_turn(messages)


def num_full_blocks(messages: Messages, num_more: int = 0) -> int:
    return (len(prompt_ids(messages)) + num_more) // BLOCK_SIZE


def make_foreign(folder: Path) -> None:
    """The namespace becomes another's; copies of its files stay in our folder, but their headers tell."""
    (namespace,) = (path for path in folder.iterdir() if path.is_dir())
    foreign = namespace.rename(namespace.with_name("0" * 32))
    namespace.mkdir()
    for file in foreign.iterdir():
        data = bytearray(file.read_bytes())
        data[data.index(bytes.fromhex(namespace.name))] ^= 1
        (namespace / file.name).write_bytes(data)


@pytest.mark.slow
async def test_an_old_session_goes_on_after_each_of_20_kills(tmp_path: Path) -> None:
    draw = random.Random(4)
    messages, num_blocks_before = opening("old"), 0
    for _ in range(NUM_KILLS):
        with serving(tmp_path) as server:
            async with server.client() as client:
                reply = await answers(client, messages)
                assert reply.num_cached_tokens == num_blocks_before * BLOCK_SIZE, "every whole block comes back"
                num_blocks = num_full_blocks(messages, MAX_TOKENS - 1)
                await server.metric_reaches("disk_written_blocks_total", num_blocks - num_blocks_before)
                crowd = [asyncio.create_task(chatter(client, draw)) for _ in range(3)]
                await asyncio.sleep(draw.random() * 0.3)  # the moment is the point; nothing is awaited
                server.kill()
                await asyncio.gather(*crowd)
        store = store_of(tmp_path)
        store.check_integrity()
        assert store.num_corrupt <= 1, "only the file that was being made may be torn"
        store.close()
        num_blocks_before, messages = num_full_blocks(messages), next_turn(messages)


async def test_a_stopped_server_has_written_everything(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with server.client() as client:
            await answers(client, opening("one"))
            await answers(client, opening("two"))
        server.stop()
    with serving(tmp_path) as server:
        async with server.client() as client:
            for name in ("one", "two"):
                reply = await answers(client, next_turn(opening(name)))
                assert reply.num_cached_tokens == num_full_blocks(opening(name)) * BLOCK_SIZE
        assert await server.metric("disk_loaded_tokens_total") > 0


async def test_what_the_pool_loses_the_disk_gives_back(tmp_path: Path) -> None:
    """A pool for little more than one conversation: each of three finds its beginning on disk, again and again."""
    num_blocks = 2 * num_full_blocks(opening("a")) + 10
    with serving(tmp_path, num_blocks) as server:
        async with server.client() as client:
            for name in "abc":
                await answers(client, opening(name))
                await server.metric_reaches("disk_blocks", num_full_blocks(opening(name)) * ("abc".index(name) + 1))
            for name in "abcabc":
                reply = await answers(client, next_turn(opening(name)))
                assert reply.num_cached_tokens >= num_full_blocks(opening(name)) * BLOCK_SIZE
        assert await server.metric("disk_loaded_tokens_total") > 3 * num_full_blocks(opening("a")) * BLOCK_SIZE
        assert await server.metric("disk_errors_total") == 0


async def test_another_secrets_files_are_never_used(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        async with server.client() as client:
            await answers(client, opening("one"))
        server.stop()
    make_foreign(tmp_path)
    with serving(tmp_path) as server:
        async with server.client() as client:
            assert (await answers(client, opening("one"))).num_cached_tokens == 0


async def test_a_server_beside_it_runs_without_the_disk(tmp_path: Path) -> None:
    with serving(tmp_path) as first, serving(tmp_path) as second:
        for server in (first, second):
            async with server.client() as client:
                await answers(client, opening("one"))
        await first.metric_reaches("disk_blocks", num_full_blocks(opening("one")))
        assert await second.metric("disk_blocks") == 0


async def test_a_folder_that_cannot_be_used_costs_no_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with serving(tmp_path / "file") as server:
        async with server.client() as client:
            await answers(client, opening("one"))
            assert (await answers(client, next_turn(opening("one")))).num_cached_tokens > 0
