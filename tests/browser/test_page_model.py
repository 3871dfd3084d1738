"""The page before the default model, served by the command."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from proxy.__main__ import bind
from tests.browser.conftest import CHROMIUM, Visiting
from tests.contract.conftest import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.model, pytest.mark.slow]

DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: `make browser`")
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "proxy", "serve", "--port", str(port), "--index", "off"]
    with log.open("wb") as written:
        process = subprocess.Popen([*command, "--pool-size", "8000 tokens"], stderr=written, env=dict(os.environ))
    try:
        eventually(
            lambda: f"page=http://127.0.0.1:{port}/ui" in plain(log), "the server says where its page is", DEADLINE_S
        )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def plain(log: Path) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))


async def test_the_default_model_s_second_turn_is_cached(origin: str, visiting: Visiting) -> None:
    async with visiting(origin) as visit:
        await visit.open()
        await expect(visit["#model"]).to_have_text(re.compile("SmolLM2"))
        await visit["summary"].click()
        await visit["#chat-system"].fill("You are the assistant of a library. " * 12)
        await visit["#chat-max"].fill("16")
        await visit.say("Where are the atlases?")
        await visit.say("Who keeps them?")
        (first, cached, _), (second, cached_2, new_2) = await visit.turns()
        assert first > 80 and second > first and cached_2 >= first > cached and new_2 < 30
        await expect(visit["#trie .node"]).to_have_count(1)
        assert await visit.stored_tokens() >= first
