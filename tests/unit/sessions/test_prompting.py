"""ChatService before the engine: what is refused at once, and what is encoded off the event loop."""

import time

import pytest

from sessions.errors import ContextLengthExceeded
from sessions.service import LONG_PROMPT_CHARACTERS, _is_long
from sessions.types import ChatRequest, Message, SamplingParams, Tool
from tests.fakes import open_fake_service

QUESTION = (Message("user", "hi"),)
LONG = "x" * LONG_PROMPT_CHARACTERS


def ask(messages: tuple[Message, ...] = QUESTION, tools: tuple[Tool, ...] = (), prediction: str = "") -> ChatRequest:
    return ChatRequest(messages=messages, params=SamplingParams(), tools=tools, prediction=prediction)


@pytest.mark.parametrize(
    ("request_", "is_long"),
    [
        (ask(), False),
        (ask(tools=(Tool("f", "short", {"type": "object", "required": ["a"]}),)), False),
        (ask((*QUESTION, Message("user", LONG))), True),
        (ask((Message("user"),) * 10_000), True),
        (ask(prediction=LONG), True),
        (ask(tools=(Tool("f", LONG),)), True),
        (ask(tools=(Tool("f", None, {"properties": {"a": {"enum": ["b", LONG]}}}),)), True),
        (ask(tools=(Tool("f", None, {"properties": {LONG: {}}}),)), True),
    ],
)
def test_whatever_makes_a_prompt_long_takes_it_off_the_event_loop(request_: ChatRequest, is_long: bool) -> None:
    assert _is_long(request_) == is_long


async def test_more_messages_than_tokens_are_refused_without_rendering_them() -> None:
    service = await open_fake_service(max_model_len=200)
    try:
        began = time.monotonic()
        with pytest.raises(ContextLengthExceeded, match="at least 340000"):
            await service.start(ask((Message("user"),) * 340_000))
        assert time.monotonic() - began < 1
    finally:
        await service.close()
