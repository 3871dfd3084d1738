"""SIGTERM to a real child process: what was accepted is answered to its last byte, what comes later is refused."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.contract.conftest import DEADLINE_S, eventually

CHILD = """
import sys
from proxy import logs
from proxy.listening import bind
from proxy.server import Server
from proxy.settings import Settings
from tests.fakes import open_fake_service

logs.configure("info", "json")
bound = bind("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
Server(Settings(shutdown_timeout_s=float(sys.argv[1])), lambda _: open_fake_service()).run(sockets=[bound])
"""


class Child:
    def __init__(self, shutdown_timeout_s: float) -> None:
        command = [sys.executable, "-c", CHILD, str(shutdown_timeout_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.origin = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        eventually(self._is_ready, "the child is ready", deadline_s=60)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None
        try:
            return httpx.get(self.origin + "/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stream_until_signalled(self, max_tokens: int) -> list[str]:
        """The lines of a stream in whose middle the child gets SIGTERM."""
        request = {
            "model": "fake",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "ignore_eos": True,
        }
        lines: list[str] = []
        with httpx.stream("POST", self.origin + "/v1/chat/completions", json=request, timeout=DEADLINE_S) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == 10:
                    self.process.send_signal(signal.SIGTERM)
        return [line for line in lines if line]


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    started = Child(shutdown_timeout_s=request.param)
    with started.process:
        yield started
        started.process.kill()


@pytest.mark.parametrize("child", [20.0], indirect=True)
def test_a_running_stream_is_answered_in_full(child: Child) -> None:
    *_, usage, done = child.stream_until_signalled(max_tokens=3000)
    assert json.loads(usage[6:])["usage"]["completion_tokens"] == 3000
    assert done == "data: [DONE]"
    _, errors = child.process.communicate(timeout=DEADLINE_S)
    assert child.process.returncode == -signal.SIGTERM
    assert [record["event"] for record in map(json.loads, errors.splitlines())] == ["serving", "draining", "request"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(child.origin + "/health")


@pytest.mark.parametrize("child", [0.3], indirect=True)
def test_a_stream_past_the_time_limit_is_told_so(child: Child) -> None:
    *_, error, done = child.stream_until_signalled(max_tokens=8000)
    assert json.loads(error[6:])["error"]["code"] == "shutting_down"
    assert done == "data: [DONE]"
    child.process.communicate(timeout=DEADLINE_S)
    assert child.process.returncode == -signal.SIGTERM
