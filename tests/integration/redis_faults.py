"""What can happen to the server behind the trie, each as a context: it breaks on entry and is mended on exit."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from tests.integration.index.index_servers import DistantServer, ValkeyServer, free_port, scripted_server


@contextlib.contextmanager
def killed(server: ValkeyServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextlib.contextmanager
def frozen(server: ValkeyServer) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextlib.contextmanager
def emptied(server: ValkeyServer) -> Iterator[None]:
    server.command("FLUSHALL")
    yield


@contextlib.contextmanager
def restarted(server: ValkeyServer) -> Iterator[None]:
    server.kill()
    server.start()
    yield


@contextlib.contextmanager
def out_of_memory(server: ValkeyServer) -> Iterator[None]:
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.command("CONFIG", "SET", "maxmemory", "1")
    yield
    server.command("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def read_only(server: ValkeyServer) -> Iterator[None]:
    server.command("REPLICAOF", "127.0.0.1", free_port())
    yield
    server.command("REPLICAOF", "NO", "ONE")


def slow_by(delay_s: float) -> Callable[[DistantServer], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def slow(server: DistantServer) -> Iterator[None]:
        server.delay_s = delay_s
        yield
        server.delay_s = 0.0

    return slow


def saying(rubbish: bytes) -> Callable[[ValkeyServer], AbstractContextManager[None]]:
    """Something that is no Redis has taken the server's port."""

    @contextlib.contextmanager
    def talking(server: ValkeyServer) -> Iterator[None]:
        server.kill()
        with scripted_server(server.port, lambda _: rubbish):
            yield
        server.start()

    return talking
