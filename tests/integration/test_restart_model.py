"""The default model, served by the command: killed, started again, and the old conversation goes on from disk."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from proxy.listening import bind
from tests.contract.conftest import eventually
from tests.oracle import cache_dir

DEADLINE_S = 120.0
QUESTION = "Tell me a long story about a lighthouse keeper. " * 40


def own_cache_dir(folder: Path) -> Path:
    """The user's converted models and kernels, but not the user's KV."""
    for item in cache_dir().iterdir():
        if item.name != "kv":
            (folder / item.name).symlink_to(item)
    return folder


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The origin of `anaphora serve`; killed in the end."""
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--cache-dir", str(folder), "--disk-size", "1GiB", "--index", "off"]
    command = [sys.executable, "-m", "proxy", "serve", *options, "--pool-size", "8000 tokens"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"ANAPHORA_SECRET": "s" * 32})
    origin = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_ready(origin), "the server is ready", DEADLINE_S)
        yield origin
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def is_ready(origin: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{origin}/ready").status_code == 200
    return False


def ask(origin: str, messages: list[dict[str, str]]) -> tuple[str, int, int]:
    """(text, prompt tokens, cached tokens) of a greedy reply."""
    with OpenAI(base_url=f"{origin}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as client:
        create: Any = client.chat.completions.create
        reply = create(model="SmolLM2-135M-Instruct", messages=messages, temperature=0, max_tokens=24)
    return reply.choices[0].message.content, reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens


def num_disk_blocks(origin: str) -> int:
    found = re.search(r"^anaphora_disk_blocks (\S+)$", httpx.get(f"{origin}/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


@pytest.mark.model
@pytest.mark.slow
def test_an_old_conversation_goes_on_with_the_same_answer(tmp_path: Path) -> None:
    folder = own_cache_dir(tmp_path)
    messages = [{"role": "user", "content": QUESTION}]
    with serving(folder) as origin:
        text, num_tokens, _ = ask(origin, messages)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And then?"}]
        warm = ask(origin, messages)
        eventually(lambda: num_disk_blocks(origin) >= (warm[1] + 23) // 16, "both turns are on disk", DEADLINE_S)
    with serving(folder) as origin:
        again = ask(origin, messages)
    assert again[:2] == warm[:2]
    assert again[2] >= 0.9 * num_tokens
