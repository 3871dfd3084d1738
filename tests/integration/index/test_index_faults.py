"""Two replicas on one real server that is broken in every way we know of. Redis is a hint: each time

* a lookup is answered within its budget, raises nothing and leaves no exception behind;
* publishing goes on without waiting;
* once the server is well, everything that was published is claimed again.
"""

import asyncio
import time

import pytest
import redis
from index_fleet import MARGIN_S, Fleet, running
from index_servers import ValkeyServer, eventually, free_port, scripted_server

from sessions.index import Lookup


async def during(fleet: Fleet, fault_s: float) -> list[Lookup | None]:
    """Keep asking and publishing for `fault_s`."""
    lookups = []
    ends_at = time.monotonic() + fault_s
    while time.monotonic() < ends_at:
        lookups.append(await fleet.ask("old"))
        fleet.was_down |= "down" in (fleet.a.index.state, fleet.b.index.state)
        started_at = time.monotonic()
        fleet.a.hold(f"during {len(lookups) % 20}", 20)
        assert time.monotonic() - started_at < MARGIN_S
        await asyncio.sleep(0.01)
    return lookups


async def recovered(fleet: Fleet) -> None:
    await fleet.sees("old", 50)
    await fleet.sees("during 1", 20)
    fleet.a.hold("new", 7)
    await fleet.sees("new", 7)
    assert fleet.a.index.state == fleet.b.index.state == "redis"


async def test_killed_and_restarted_empty(fleet: Fleet, server: ValkeyServer) -> None:
    server.kill()
    assert None in await during(fleet, 0.8)
    assert fleet.b.index.state == "down"
    assert not fleet.b.index.should_ask()
    server.start()
    await recovered(fleet)


async def test_frozen(fleet: Fleet, server: ValkeyServer) -> None:
    server.freeze()
    assert set(await during(fleet, 0.8)) == {None}
    assert fleet.b.index.state == "down"
    server.thaw()
    await recovered(fleet)


async def test_stopping_while_frozen_takes_no_longer_than_allowed(fleet: Fleet, server: ValkeyServer) -> None:
    server.freeze()
    asked_at = time.monotonic()
    fleet.a.index.stop(0.5)
    assert time.monotonic() - asked_at < 0.5 + MARGIN_S
    assert fleet.a.index.state == "off"
    server.thaw()


async def test_emptied(fleet: Fleet, server: ValkeyServer) -> None:
    resyncs = fleet.a.index.stats().resyncs
    server.command("FLUSHALL")
    await during(fleet, 0.3)
    await recovered(fleet)
    assert fleet.a.index.stats().resyncs > resyncs


async def test_out_of_memory_reading_goes_on(fleet: Fleet, server: ValkeyServer) -> None:
    """For longer than a lease: while nobody can renew, nobody is taken for dead."""
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.command("CONFIG", "SET", "maxmemory", "1")
    lookups = await during(fleet, 1.5)
    assert set(lookups) == {Lookup(0, fleet.a.index.incarnation, 50)}
    assert not fleet.was_down
    server.command("CONFIG", "SET", "maxmemory", "0")
    await recovered(fleet)


async def test_read_only_reading_goes_on(fleet: Fleet, server: ValkeyServer) -> None:
    server.command("REPLICAOF", "127.0.0.1", free_port())
    lookups = await during(fleet, 1.5)
    assert set(lookups) == {Lookup(0, fleet.a.index.incarnation, 50)}
    assert not fleet.was_down
    server.command("REPLICAOF", "NO", "ONE")
    await recovered(fleet)


async def test_slow(fleet: Fleet, server: ValkeyServer) -> None:
    for _ in range(3):
        server.command_unanswered("DEBUG", "SLEEP", "0.3")
        assert None in await during(fleet, 0.4)
    await recovered(fleet)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"$5\r\n\xff\xfe\xfd\xfc\xfb\r\n",
        b"*-1\r\n",
        b"\x00" * 100,
        b"",
        b"*1000000\r\n",
    ],
    ids=["http", "ok", "numbers", "bytes", "null", "zeros", "silence", "unfinished"],
)
async def test_rubbish(fleet: Fleet, server: ValkeyServer, rubbish: bytes) -> None:
    server.kill()
    with scripted_server(server.port, lambda _: rubbish):
        assert None in await during(fleet, 0.5)
    server.start()
    await recovered(fleet)


async def test_a_trickle(fleet: Fleet, server: ValkeyServer) -> None:
    """Each byte comes within the socket's timeout, the reply does not: the caller's own deadline counts."""
    server.kill()
    with scripted_server(server.port, lambda _: b"*1000\r\n" + b":1\r\n" * 1000, pause_s=0.02):
        assert set(await during(fleet, 0.8)) == {None}
    server.start()
    await recovered(fleet)


async def test_absent_at_start_and_appearing_later() -> None:
    server = ValkeyServer()
    async with running(Fleet(server.url)) as fleet:
        fleet.a.hold("old", 50)
        assert set(await during(fleet, 0.4)) == {None}
        assert fleet.a.index.state == "down"
        server.start()
        try:
            await recovered(fleet)
        finally:
            server.kill()


async def test_scripts_flushed(fleet: Fleet, server: ValkeyServer) -> None:
    server.command("SCRIPT", "FLUSH")
    errors = fleet.b.index.stats().errors
    assert None not in await during(fleet, 0.3)
    await recovered(fleet)
    assert fleet.b.index.stats().errors == errors


async def test_authorisation_revoked(fleet: Fleet, server: ValkeyServer) -> None:
    with redis.Redis(port=server.port) as operator:
        operator.config_set("requirepass", "a new secret")
        operator.client_kill_filter(_type="normal", skipme=True)
        assert None in await during(fleet, 0.6)
        assert fleet.b.index.state == "down"
        operator.config_set("requirepass", "")
    await recovered(fleet)


async def test_a_server_older_than_6_2_is_left_alone() -> None:
    info = b"redis_version:6.0.16\r\n"
    port = free_port()
    with scripted_server(port, lambda _: b"$%d\r\n%s\r\n" % (len(info), info)):
        async with running(Fleet(f"redis://127.0.0.1:{port}")) as fleet:
            await eventually(lambda: fleet.a.index.state == "off")
            fleet.a.hold("old", 50)
            assert await fleet.ask("old") is None
