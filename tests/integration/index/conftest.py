"""A real server, and two replicas on it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from index_fleet import Fleet, running
from index_servers import ValkeyServer, eventually


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def fleet(server: ValkeyServer) -> AsyncIterator[Fleet]:
    """Two replicas that know of each other; `a` holds 50 blocks of "old"."""
    left_behind: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: left_behind.append(context))
    async with running(Fleet(server.url)) as fleet:
        fleet.a.hold("old", 50)
        await fleet.sees("old", 50)
        await eventually(fleet.a.index.should_ask)
        yield fleet
    assert left_behind == []
