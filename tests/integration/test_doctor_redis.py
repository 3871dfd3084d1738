"""The doctor at a real Valkey, in every state that it is to find, and at what is none."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sessions.doctor.finding import Finding
from sessions.doctor.redis_server import redis_findings, shown
from sessions.startup import ServiceOptions
from tests.integration.index.index_servers import DistantServer, ValkeyServer, free_port, scripted_server
from tests.integration.redis_faults import frozen, out_of_memory, read_only, slow_by

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "redis-trie.md").read_text("utf-8")
LEAST_RIGHTS = DOCUMENTED.partition("~kv:*")[2].partition("and, for what")[0].split()
WELL = ("--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru")


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    started = ValkeyServer(*WELL)
    started.start()
    yield started
    started.kill()


def examine(url: str = "", **more: Any) -> dict[str, Finding]:
    options = ServiceOptions(cache_dir=Path("unused"), redis_url=url, **({"response_ttl_s": 0} | more))
    return {finding.check: finding for finding in redis_findings(options)}


def test_a_server_that_is_well(server: ValkeyServer) -> None:
    found = examine(server.url)
    assert {finding.verdict for finding in found.values()} == {"fine"}
    assert found["Redis"].figure.startswith("valkey ") and f"127.0.0.1:{server.port}" in found["Redis"].figure
    assert found["Redis memory"].figure.endswith("of 64, volatile-lru")
    assert server.command("KEYS", "*") == []


def test_off_and_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert examine(index="off")["Redis"].figure.startswith("off")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert {finding.verdict for finding in examine().values()} == {"fine"}
    (tmp_path / "anaphora").chmod(0o755)
    refused = examine()["Redis"]
    assert refused.verdict == "warning" and "0700" in refused.figure
    assert examine(index="embedded")["Redis"].verdict == "failure"


def test_nobody_answers(server: ValkeyServer) -> None:
    found = examine(f"redis://:hunter2@127.0.0.1:{free_port()}")["Redis"]
    assert found.verdict == "failure" and "ConnectionError" in found.figure
    assert "hunter2" not in str(found) and shown("unix:///run/s.sock?password=x") == "unix:///run/s.sock"
    with frozen(server):
        assert examine(server.url)["Redis"].verdict == "failure"


def test_something_else_answers() -> None:
    port = free_port()
    with scripted_server(port, lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n"):
        assert examine(f"redis://127.0.0.1:{port}")["Redis"].verdict == "failure"


def test_an_old_one() -> None:
    port = free_port()

    def old(received: bytes) -> bytes:
        if b"INFO" in received:
            text = b"redis_version:5.0.7\r\n"
            return b"$%d\r\n%s\r\n" % (len(text), text)
        return b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n" if b"TIME" in received else b"+OK\r\n"

    with scripted_server(port, old):
        found = examine(f"redis://127.0.0.1:{port}")["Redis"]
    assert found.verdict == "failure" and "5.0.7" in found.figure and "6.2 or newer" in found.advice


def test_one_that_is_far_away() -> None:
    server = DistantServer()
    server.start()
    try:
        with slow_by(0.02)(server):
            assert examine(server.url, redis_timeout_ms=35)["Redis"].verdict == "warning"
            late = examine(server.url, redis_timeout_ms=10)["Redis"]
    finally:
        server.kill()
    assert late.verdict == "failure" and "--redis-timeout-ms (10)" in late.advice


def test_one_that_refuses_to_be_written(server: ValkeyServer) -> None:
    with read_only(server):
        assert "primary" in examine(server.url)["Redis writes"].advice
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    with out_of_memory(server):
        refused = examine(server.url)["Redis writes"]
        assert refused.verdict == "failure" and "maxmemory" in refused.figure


def test_how_it_forgets() -> None:
    server = ValkeyServer()
    server.start()
    try:
        assert "no limit" in examine(server.url)["Redis memory"].figure
        server.command("CONFIG", "SET", "maxmemory", "64mb")
        for policy, says in (("noeviction", "refuse to be told"), ("allkeys-lru", "without an expiry must stay")):
            server.command("CONFIG", "SET", "maxmemory-policy", policy)
            assert says in examine(server.url)["Redis memory"].advice
    finally:
        server.kill()


def test_what_it_keeps(server: ValkeyServer) -> None:
    lost = examine(server.url, response_ttl_s=60)["Redis persistence"]
    assert lost.verdict == "warning" and "appendonly yes" in lost.advice
    server.command("CONFIG", "SET", "save", "3600 1")
    assert examine(server.url, response_ttl_s=60)["Redis persistence"].figure == "snapshots (3600 1)"
    server.command("CONFIG", "SET", "save", "")


def test_users(server: ValkeyServer) -> None:
    server.command("ACL", "SETUSER", "least", "on", ">pw", "~kv:*", *LEAST_RIGHTS)
    server.command("ACL", "SETUSER", "reader", "on", ">pw", "~kv:*", "+time", "+get")

    def as_user(name: str) -> dict[str, Finding]:
        return examine(f"redis://{name}@127.0.0.1:{server.port}")

    assert {finding.verdict for finding in as_user("least:pw").values()} == {"fine"}
    assert "redis-trie.md" in as_user("reader:pw")["Redis writes"].advice
    assert "user or password" in as_user("least:wrong")["Redis"].advice


def test_a_clock_that_is_wrong(server: ValkeyServer) -> None:
    """A road on which the answer to TIME is an hour old."""
    port = free_port()

    def answer(received: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port)) as real:
            real.sendall(received)
            said = real.recv(65536)
        if b"TIME" not in received:
            return said
        _, _, seconds, _, micros, _ = said.split(b"\r\n")
        return b"*2\r\n$10\r\n%d\r\n$%d\r\n%s\r\n" % (int(seconds) - 3600, len(micros), micros)

    with scripted_server(port, answer):
        clock = examine(f"redis://127.0.0.1:{port}")["clock"]
    assert clock.verdict == "warning" and "behind" in clock.figure and "NTP" in clock.advice
