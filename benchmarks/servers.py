"""The servers under measurement: given by URL, or started here one at a time and ended afterwards."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from openai import OpenAIError

from benchmarks.client import BenchmarkFailed, Client

START_TIMEOUT_S: Final = 300.0
GIVEN_TIMEOUT_S: Final = 10.0
"""For a server given by URL, which should be up."""
STOP_TIMEOUT_S: Final = 30.0
OUTPUT_TAIL: Final = 2_000
"""Characters of a failed server's output that are shown."""


@dataclass(frozen=True, slots=True)
class Server:
    """name: its column. One of base_url and command is set; in `command`, `{port}` is where it is to listen."""

    name: str
    base_url: str = ""
    command: str = ""

    @classmethod
    def parse(cls, text: str, *, is_command: bool) -> "Server":
        """`name=url` or `name=command`. Raises ValueError."""
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise ValueError(f"'{text}' is not of the form name=value")
        if is_command and "{port}" not in value:
            raise ValueError(f"the command of '{name}' does not say where {{port}} goes")
        return cls(name, command=value) if is_command else cls(name, base_url=value)


@asynccontextmanager
async def running(server: Server, api_key: str, extra_body: Mapping[str, Any]) -> AsyncIterator[Client]:
    """A client of a server that is ready; what was started is ended. Raises BenchmarkFailed."""
    if server.base_url:
        async with aclosing(Client(server.base_url, api_key, extra_body)) as client:
            await client.wait_ready(GIVEN_TIMEOUT_S, lambda: False)
            yield client
        return
    port = free_port()
    arguments = shlex.split(server.command.replace("{port}", str(port)))
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            async with aclosing(Client(f"http://127.0.0.1:{port}/v1", api_key, extra_body)) as client:
                await client.wait_ready(START_TIMEOUT_S, lambda: process.returncode is not None)
                yield client
        except (BenchmarkFailed, OpenAIError) as failure:
            output.seek(0)
            shown = output.read().decode(errors="replace")[-OUTPUT_TAIL:]
            raise BenchmarkFailed(f"{failure}; its output ends:\n{shown}") from failure
        finally:
            await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the process, and SIGKILL to all of its session when it has not gone in time."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
