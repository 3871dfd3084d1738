"""The embedded server: real processes, real signals."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from index_servers import eventually

from sessions import embedded_redis
from sessions.embedded_redis import EmbeddedRedis, find_server, runtime_folder
from sessions.index import open_index

OWNER = """
import sys, threading
from pathlib import Path
from sessions.embedded_redis import EmbeddedRedis, find_server
server = EmbeddedRedis(find_server(), Path(sys.argv[1]))
server.start()
assert server.wait_ready(10)
print(server.pid, flush=True)
threading.Event().wait()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a socket's may not exceed 103 bytes."""
    base = Path(tempfile.mkdtemp())
    yield base / "redis"
    shutil.rmtree(base)


@pytest.fixture
def binary() -> Path:
    binary = find_server()
    assert binary is not None
    return binary


@pytest.fixture
def owner(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that owns the server in `folder`; and the server's process id."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout:
        yield process, int(process.stdout.readline())
        process.kill()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def ping(server: EmbeddedRedis) -> bool:
    with redis.Redis.from_url(server.url) as client:
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False


def test_it_starts_quickly_serves_and_goes(binary: Path, folder: Path) -> None:
    server = EmbeddedRedis(binary, folder)
    started_at = time.monotonic()
    server.start()
    assert time.monotonic() - started_at < 0.05
    assert server.wait_ready(5)
    pid = server.pid
    assert ping(server) and pid is not None and is_running(pid)
    server.stop(5)
    assert not is_running(pid) and not ping(server)


def test_it_keeps_nothing_and_listens_on_no_port(binary: Path, folder: Path) -> None:
    server = EmbeddedRedis(binary, folder)
    server.start()
    assert server.wait_ready(5)
    with redis.Redis.from_url(server.url) as client:
        options = {name: client.config_get(name)[name] for name in ("port", "save", "appendonly", "maxmemory")}
    assert options == {"port": "0", "save": "", "appendonly": "no", "maxmemory": str(256 * 2**20)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    server.stop(5)


async def test_it_comes_back_when_killed(binary: Path, folder: Path) -> None:
    server = EmbeddedRedis(binary, folder)
    server.start()
    assert server.wait_ready(5)
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: server.pid not in (None, first) and ping(server))
    server.stop(5)
    assert not ping(server)


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
async def test_it_dies_with_a_parent_that_is_killed(owner: tuple[subprocess.Popen[str], int]) -> None:
    process, server_pid = owner
    assert is_running(server_pid)
    process.kill()
    await eventually(lambda: not is_running(server_pid))


async def test_processes_share_one_server_and_the_survivor_starts_another(
    binary: Path, folder: Path, owner: tuple[subprocess.Popen[str], int]
) -> None:
    process, _ = owner
    server = EmbeddedRedis(binary, folder)
    server.start()
    assert server.wait_ready(5)
    assert server.pid is None and ping(server)
    process.kill()
    await eventually(lambda: server.pid is not None and ping(server))
    server.stop(5)


def test_who_does_not_own_the_server_leaves_it_running(
    binary: Path, folder: Path, owner: tuple[subprocess.Popen[str], int]
) -> None:
    server = EmbeddedRedis(binary, folder)
    server.start()
    assert server.wait_ready(5)
    server.stop(5)
    assert is_running(owner[1]) and ping(server)


async def test_an_index_runs_on_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent))
    index = open_index("auto", None, fleet=b"model", resync_source=list)
    index.start()
    await eventually(lambda: index.state == "embedded")
    index.stop(2.0)
    assert index.state == "off"


def test_without_a_server_the_index_is_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert find_server() is None
    index = open_index("auto", None, fleet=b"model", resync_source=list)
    index.start()
    assert index.state == "off"
    index.stop()


@pytest.mark.parametrize("version, is_found", [("7.0.15", True), ("6.2.0", True), ("6.0.16", False), ("", False)])
def test_a_server_on_the_path_must_be_new_enough(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_found: bool
) -> None:
    folder.mkdir()
    server = folder / "redis-server"
    server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 bits=64'\n")
    server.chmod(0o700)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(folder))
    assert find_server() == (server if is_found else None)


def test_a_folder_that_others_can_enter_is_refused(binary: Path, folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError):
        EmbeddedRedis(binary, folder)


def test_a_link_is_no_folder_of_ours(binary: Path, folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(PermissionError):
        EmbeddedRedis(binary, folder)


def test_a_socket_path_that_is_too_long_is_refused(binary: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="longer"):
        EmbeddedRedis(binary, folder / ("x" * 100))


def test_a_binary_that_does_not_run_leaves_no_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_MIN_BACKOFF_S", 0.01)
    server = EmbeddedRedis(Path("/bin/false"), folder)
    server.start()
    assert not server.wait_ready(0.3)
    server.stop(1)


def test_the_runtime_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert runtime_folder() == Path("/run/user/7/anaphora")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_folder() == Path(tempfile.gettempdir()) / f"anaphora-{os.getuid()}"


async def test_stopping_an_index_whose_server_is_frozen_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.parent))
    index = open_index("embedded", None, fleet=b"model", resync_source=list)
    index.start()
    await eventually(lambda: index.state == "embedded")
    server = index._embedded
    assert server is not None and server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    started_at = time.monotonic()
    await asyncio.to_thread(index.stop, 0.5)
    assert time.monotonic() - started_at < 1.2
    assert server.pid is None


def test_with_a_data_folder_what_was_written_outlives_a_killed_server(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    for expected in (None, b"kept"):
        server = EmbeddedRedis(binary, tmp_path / "run", tmp_path / "data")
        server.start()
        assert server.wait_ready(5)
        with redis.Redis.from_url(server.url) as client:
            assert client.get("reply") == expected
            client.set("reply", b"kept")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        server.stop(5)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
