"""Other people's clients, in environments of their own, against a running server: `make clients`.

Chat and streams go to the fake model, which shows the shape; tools and objects to the default model, whose answers are
held to their grammar, so that they come out right however small it is.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from tests.contract.conftest import RunningServer, running

pytestmark = pytest.mark.clients

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-clients" / "bin" / "python"
NODE = shutil.which("node")
PATIENCE_S = 280
"""Of one exchange. On two cores beside other work a reply of 50 tokens has taken two minutes."""

TASKS = {
    "python/openai_sdk.py": ("chat", "stream", "responses", "tools", "tools_streamed", "structured"),
    "python/langchain_client.py": ("chat", "stream", "responses", "tools", "tools_streamed", "structured"),
    "python/agents_sdk.py": ("chat", "stream", "responses", "tools", "structured"),
    "python/pydantic_agent.py": ("chat", "stream", "responses", "tools", "structured"),
    "python/instructor_client.py": ("chat", "tools", "structured", "partial"),
    "python/llama_index_client.py": ("chat", "stream", "responses", "tools", "structured"),
    "python/haystack_client.py": ("chat", "stream", "responses", "tools", "structured"),
    "python/llm_client.py": ("chat", "stream", "responses", "structured"),
    "node/openai_sdk.mjs": ("chat", "stream", "responses", "tools", "tools_streamed", "structured"),
    "node/ai_sdk.mjs": ("chat", "stream", "responses", "tools", "tools_streamed", "structured"),
}
"""What each script is asked. instructor streams objects only; llm calls tools when the model wants to, which this one
rarely does."""

EXCHANGES = [(script, task) for script, tasks in TASKS.items() for task in tasks]


def ask(script: str, origin: str, model: str, task: str) -> Any:
    """What the client made of the answer."""
    interpreter = str(PYTHON) if script.endswith(".py") else str(NODE)
    command = [interpreter, str(HERE / script), f"{origin}/v1", model, task]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["result"]


@pytest.fixture(params=EXCHANGES, ids=" ".join)
def exchange(request: pytest.FixtureRequest) -> tuple[str, str]:
    script, task = request.param
    if script.endswith(".py") and not PYTHON.exists():
        pytest.skip("no .venv-clients: run `make clients`")
    if script.endswith(".mjs") and not (NODE and (HERE / "node" / "node_modules").exists()):
        pytest.skip("no node, or `make clients` found none")
    return script, task


@pytest.fixture(scope="module")
def fake() -> Iterator[RunningServer]:
    with running() as started:
        yield started


class RealServer(RunningServer):
    """With the default model."""

    async def _open(self, options: ServiceOptions) -> ChatService:
        self.loop = asyncio.get_running_loop()
        self.service = await open_service(options)
        return self.service


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    server = RealServer(Settings(index="off"), {})
    server.start(deadline_s=120)
    yield server
    server.stop()


def test_the_client_s_package_works(exchange: tuple[str, str], request: pytest.FixtureRequest) -> None:
    script, task = exchange
    if task in ("chat", "stream", "responses"):
        server: RunningServer = request.getfixturevalue("fake")
        answer = ask(script, server.origin, "fake", task)
        assert len(answer) > 1 if task == "stream" else answer
        server.expect_idle()
    else:
        answer = ask(script, request.getfixturevalue("real").origin, "SmolLM2-135M-Instruct", task)
        check_tools(answer) if task in ("tools", "tools_streamed") else check_person(answer)


def check_tools(calls: list[dict[str, Any]]) -> None:
    assert calls
    for call in calls:
        arguments = json.loads(call["arguments"]) if isinstance(call["arguments"], str) else call["arguments"]
        if call["name"] == "get_weather":
            assert isinstance(arguments["city"], str)
        else:
            check_person(arguments)


def check_person(person: dict[str, Any]) -> None:
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)
