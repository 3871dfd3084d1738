"""`stable_first` as the official client sees it: what it marks is cached, whatever else the system message says."""

from typing import Any

import pytest

from proxy.settings import Settings
from sessions.engine.config import EngineConfig
from sessions.parts import ServiceParts
from sessions.service import ChatService
from sessions.startup import ServiceOptions
from tests.contract.conftest import RunningServer, shared_tokenizer
from tests.fakes import ROOT_FIELDS, FakeRunner

RULES = "You answer in verse, briefly, and never about the weather. "


class OrderingServer(RunningServer):
    """A server whose service puts marked parts first, or does not."""

    def __init__(self, *, stable_first: bool) -> None:
        super().__init__(Settings(stable_first=stable_first), {})

    async def _open(self, _: ServiceOptions) -> ChatService:
        tokenizer, config = shared_tokenizer(), EngineConfig()
        parts = ServiceParts(
            "fake", tokenizer, config, ROOT_FIELDS, b"s" * 32, 256, stable_first=self.settings.stable_first
        )
        self.service = ChatService(parts, FakeRunner(config.num_blocks, config.block_size, tokenizer.vocab_size))
        self.service.open()
        return self.service


def num_cached(server: RunningServer, day: str) -> int:
    """Of a prompt that begins with the day, as clients write it; the rules after it are marked."""
    rules = {"type": "text", "text": RULES, "prompt_cache_breakpoint": {"mode": "explicit"}}
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": f"{day}. "}, rules]},
        {"role": "user", "content": "hello"},
    ]
    with server.client() as client:
        usage = client.chat.completions.create(model="fake", messages=messages, max_tokens=1).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    return int(usage.prompt_tokens_details.cached_tokens or 0)


@pytest.mark.parametrize("stable_first", [True, False])
def test_another_day_s_prompt_reuses_what_is_marked(stable_first: bool) -> None:
    server = OrderingServer(stable_first=stable_first)
    server.start()
    try:
        num_cached(server, "Monday")
        assert (num_cached(server, "Friday") >= len(RULES)) is stable_first
    finally:
        server.stop()
