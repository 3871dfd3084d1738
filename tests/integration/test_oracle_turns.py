"""The oracle over what only conversations do, with the default model: spliced replies, breakpoints, shared content.

The reference is the engine's own answer to the same token ids, cold and alone. What a whole service says to them must
be that, token for token, however much of the prompt came out of the pool.
"""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from sessions.service import ChatService
from sessions.startup import ServiceOptions, open_service
from sessions.types import Breakpoint, CacheOptions, ChatRequest, Message, Part, SamplingParams, SharedPrompt, Tenant
from tests.fakes import text_of
from tests.oracle import NUM_NEW, ColdOracle, cache_dir

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

RULES = "You keep a lighthouse. You answer in one short sentence, and you never tell what day it is. " * 3
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_NEW, ignore_eos=True)
QUESTIONS = ("Who lives at the café by the sea?", "What does a 🙂 mean there?", "List three rivers.")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[ChatService]:
    options = ServiceOptions(
        cache_dir(),
        pool_size="16000 tokens",
        index="off",
        shared_prompts=(SharedPrompt((Message("system", RULES),)),),
    )
    opened = await open_service(options)
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def oracle(service: ChatService) -> ColdOracle:
    return ColdOracle(service.engine._runner._loaded)  # type: ignore[attr-defined]


class Answered:
    """What the service said to a request, and to which token ids."""

    def __init__(self, token_ids: list[int], reply_ids: list[int], text: str, cached: int, spliced: int) -> None:
        self.token_ids, self.reply_ids, self.text = token_ids, reply_ids, text
        self.cached, self.spliced = cached, spliced

    def expect_right(self, oracle: ColdOracle) -> None:
        oracle.learn([self.token_ids])
        assert [*self.token_ids, *self.reply_ids] == oracle.answers[tuple(self.token_ids)]


async def ask(service: ChatService, request: ChatRequest) -> Answered:
    prompted = await service._prompter.prompt(request)
    generation = await service.start(request)
    text = await text_of(generation)
    (choice,) = generation._choices.values()
    cached = generation.usage().cached_tokens
    return Answered(list(prompted.token_ids), list(choice.said.ids), text, cached, generation.report.num_spliced)


async def test_spliced_turns(service: ChatService, oracle: ColdOracle) -> None:
    """Replies at a high temperature, which read back as text are other tokens."""
    messages = [Message("system", RULES)]
    num_drifted = 0
    for turn, question in enumerate(QUESTIONS):
        messages.append(Message("user", question))
        asked = ChatRequest(tuple(messages), GREEDY, tenant=Tenant("alice"))
        greedy = await ask(service, asked)
        assert greedy.spliced == turn and (turn == 0 or greedy.cached > len(greedy.token_ids) // 2)
        greedy.expect_right(oracle)
        read_back = await service._prompter.prompt(replace(asked, splice=False))
        num_drifted += list(read_back.token_ids) != greedy.token_ids
        said = await ask(
            service, replace(asked, params=replace(GREEDY, temperature=1.6, max_tokens=24, seed=turn, ignore_eos=False))
        )
        messages.append(Message("assistant", said.text))
    assert num_drifted, "no reply drifted: this shows nothing"


async def test_explicit_breakpoints(service: ChatService, oracle: ColdOracle) -> None:
    """What is read ends in the middle of a block that goes on with something else; so does what is written."""
    marked = RULES + "The harbour closes at nine. "
    for number, rest in enumerate(("Today is Monday.", "It is very late.", "Today is Sunday.")):
        parts = (Part(0, len(marked), Breakpoint()), Part(len(marked), len(marked + rest)))
        system = Message("system", marked + rest, parts=parts)
        asked = ChatRequest((system, Message("user", QUESTIONS[number])), GREEDY, tenant=Tenant("carol"))
        explicit = await ask(service, replace(asked, cache=CacheOptions(is_explicit=True)))
        implicit = await ask(service, asked)
        explicit.expect_right(oracle)
        assert implicit.reply_ids == explicit.reply_ids and implicit.cached > explicit.cached - 1
        if number:
            prompted = await service._prompter.prompt(asked)
            assert explicit.cached == prompted.breakpoints[0][0]


async def test_shared_content_of_another_tenant(service: ChatService, oracle: ColdOracle) -> None:
    asked = ChatRequest((Message("system", RULES), Message("user", "Who are you?")), GREEDY, tenant=Tenant("dave"))
    first = await ask(service, asked)
    second = await ask(service, replace(asked, tenant=Tenant("eve")))
    assert second.cached % 16 == 0 and second.cached > 48
    assert second.reply_ids == first.reply_ids
    second.expect_right(oracle)
