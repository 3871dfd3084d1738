"""A real server for the real client: `proxy.server.Server` (uvicorn) in a thread, over a real service and a fake model.

The engine can be held between two steps (`RunningServer.engine_held`), which makes queues, silences and time limits
happen when a test wants them, without a sleep.
"""

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
from openai import AsyncOpenAI, OpenAI

from proxy.listening import bind
from proxy.server import Server
from proxy.settings import Settings
from sessions.documents import Keeping
from sessions.index import IndexSettings
from sessions.parts import IndexOptions
from sessions.reports import Stats
from sessions.service import ChatService
from sessions.startup import ServiceOptions
from sessions.tokenizer import Tokenizer
from tests.fakes import byte_tokenizer, open_fake_service

T = TypeVar("T")

DEADLINE_S = 20.0


@functools.cache
def shared_tokenizer() -> Tokenizer:
    return byte_tokenizer()


def eventually(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll for what announces itself by no event a test could wait for."""
    ends_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_at, f"not within {deadline_s:g} s: {what}"
        threading.Event().wait(0.005)


class RunningServer:
    """A server in a thread. `service` belongs to that thread's loop; look at it through `stats()` and `on_loop()`."""

    def __init__(self, settings: Settings, engine: dict[str, int]) -> None:
        self.settings = settings
        self.service: ChatService
        self.server = Server(settings, self._open)
        self._engine = engine
        self.socket = bind(settings.host, 0)
        self.port: int = self.socket.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    async def _open(self, options: ServiceOptions) -> ChatService:
        self.loop = asyncio.get_running_loop()
        settings = self.settings
        keeping = Keeping(settings.response_ttl_s, settings.max_stored_responses) if settings.response_ttl_s else None
        self.service = await open_fake_service(
            tokenizer=shared_tokenizer(),
            shared_prompts=options.shared_prompts,
            max_num_waiting=settings.max_num_waiting,
            index=IndexOptions(client=IndexSettings(keeping=keeping)),
            max_stored_bytes=settings.max_stored_bytes,
            **self._engine,
        )
        return self.service

    def start(self, deadline_s: float = DEADLINE_S) -> None:
        self._thread.start()
        eventually(lambda: self.server.started or not self._thread.is_alive(), "server started", deadline_s)
        assert self.server.started

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the server did not stop"
        self.socket.close()

    def client(self, **options: Any) -> OpenAI:
        defaults: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": DEADLINE_S}
        return OpenAI(base_url=self.origin + "/v1", _strict_response_validation=True, **(defaults | options))

    def async_client(self, **options: Any) -> AsyncOpenAI:
        defaults: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": DEADLINE_S}
        return AsyncOpenAI(base_url=self.origin + "/v1", _strict_response_validation=True, **(defaults | options))

    def on_loop(self, function: Callable[[], T]) -> T:
        """Call `function` on the server's event loop."""

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(DEADLINE_S)

    def stats(self) -> Stats:
        return self.on_loop(self.service.stats)

    def num_in_flight(self) -> int:
        return self.on_loop(lambda: int(self.server.app_state.in_flight.num_in_flight))

    def expect_idle(self) -> None:
        """Nothing runs, waits, holds a block or counts as in flight, within the deadline."""

        def is_idle() -> bool:
            stats = self.stats()
            held = (stats.num_requests_running, stats.num_requests_waiting, stats.kv_cache_usage)
            return held == (0, 0, 0.0) and self.num_in_flight() == 0

        eventually(is_idle, "the server is idle")

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """The engine thread stands still, between two steps, until the block ends."""
        release, held = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            release.wait(DEADLINE_S)

        self.service.engine.call(hold)
        assert held.wait(DEADLINE_S)
        try:
            yield
        finally:
            release.set()


Serve = Callable[..., RunningServer]


@contextlib.contextmanager
def running(engine: dict[str, int] | None = None, **settings: Any) -> Iterator[RunningServer]:
    server = RunningServer(Settings(**settings), engine or {})
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """One server with default settings for a module's tests; each must leave it idle."""
    with running() as started:
        yield started


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    with server.client() as connected:
        yield connected


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers with settings of the test's own: `serve(max_inflight=1, engine={"block_size": 4})`."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(**options))
