"""Grammars over the default model: whose tokens straddle what a schema keeps apart."""

import json
from collections.abc import AsyncIterator

import jsonschema
import pytest
import pytest_asyncio

from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from sessions.types import ChatRequest, Grammar, Message, SamplingParams
from tests.oracle import cache_dir
from tests.schemas import NAMED

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TRIED = ("anyOf that shares beginnings", "pattern", "odd keys", "unicode keys and values")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[ChatService]:
    opened = await open_service(ServiceOptions(cache_dir(), pool_size="8000 tokens", index="off"))
    yield opened
    await opened.close()


async def test_every_schema_is_obeyed(service: ChatService) -> None:
    for temperature in (0.0, 1.0):
        for name in TRIED:
            grammar = Grammar("json_schema", json.dumps(NAMED[name]))
            params = SamplingParams(temperature=temperature, max_tokens=150, grammar=grammar, seed=1)
            generation = await service.start(ChatRequest((Message("user", "Answer in Markdown."),), params, n=2))
            texts, reasons = ["", ""], ["", ""]
            async for delta in generation:
                texts[delta.choice] += delta.text
                reasons[delta.choice] = delta.finish_reason or ""
            generation.close()
            assert reasons == ["stop", "stop"], (name, texts)
            for text in texts:
                jsonschema.validate(json.loads(text), NAMED[name])
