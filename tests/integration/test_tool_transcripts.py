"""Turns with calls and thoughts are taken up where they ended: what was said before is neither rendered nor encoded."""

from dataclasses import replace

import pytest

from sessions.conversation import Turn
from sessions.service import ChatService
from sessions.tokenizer import Tokenizer
from sessions.types import ChatRequest, Message, SamplingParams, Tool, ToolCall, ToolChoice
from tests import templates
from tests.fakes import byte_tokenizer, open_fake_service
from tests.integration.test_tool_turns import OPENS_THOUGHTS, SCHEMA

TOOLS = (Tool("get_weather", "Forecast.", SCHEMA), Tool("now"))
CALL, SAY = ToolChoice("required", ("get_weather",), is_parallel=False), ToolChoice("none")
TOKENIZERS = {
    "chatml": byte_tokenizer(),
    "gemma": byte_tokenizer(templates.GEMMA),
    "mistral": byte_tokenizer(templates.MISTRAL, ("[TOOL_CALLS]",)),
    "thinking": byte_tokenizer(OPENS_THOUGHTS, ("<think>", "</think>", "<tool_call>", "</tool_call>")),
}


def asking(messages: list[Message], choice: ToolChoice, num_tokens: int) -> ChatRequest:
    params = SamplingParams(max_tokens=num_tokens)
    return ChatRequest(tuple(messages), params, tools=TOOLS, tool_choice=choice)


async def reply_to(service: ChatService, request: ChatRequest) -> Message:
    generation = await service.start(request)
    text = reasoning = ""
    calls: list[list[str]] = []
    async for delta in generation:
        text, reasoning = text + delta.text, reasoning + delta.reasoning
        for piece in delta.tool_calls:
            calls += [[piece.id or "", piece.name or "", ""]] if piece.index == len(calls) else []
            calls[piece.index][2] += piece.arguments
    generation.close()
    return Message("assistant", text, tool_calls=tuple(ToolCall(*call) for call in calls), reasoning=reasoning)


@pytest.mark.parametrize("sends_thoughts", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
async def test_each_turn_looks_at_its_new_messages_alone(name: str, sends_thoughts: bool) -> None:
    tokenizer: Tokenizer = TOKENIZERS[name]
    thinks = tokenizer.template.dialect.thinks
    service = await open_fake_service(tokenizer=tokenizer, num_blocks=4096, max_model_len=32_000)
    messages: list[Message] = []
    known_turns: tuple[Turn, ...] = ()
    num_known = 0
    for number in range(1 if thinks else 3):  # thoughts are long: they end when the fake model draws their end
        messages.append(Message("user", f"Weather {number}?"))
        for choice in (CALL, SAY):
            request = asking(messages, choice, 5000 if thinks else 300 if choice is CALL else 9)
            found = await service._prompter.prompt(request)
            looked_at = await service._prompter.prompt(replace(request, wants_explanation=True))
            assert list(found.token_ids) == list(looked_at.token_ids)
            assert found.prompt.text == looked_at.prompt.text
            assert found.chain.hashes == looked_at.chain.hashes
            assert found.opening.key == looked_at.opening.key
            assert len(found.prompt.known_ids) == num_known
            turns = found.opening.conversation.turns
            assert turns == looked_at.opening.conversation.turns
            if sends_thoughts or not thinks:  # what is known is not put in order again
                assert all(turn is known for turn, known in zip(turns, known_turns, strict=False))
            assert sum(len(segment.text) for segment in found.prompt.segments) < 500 or not num_known
            reply = await reply_to(service, request)
            assert bool(reply.tool_calls) == (choice is CALL)
            [transcript] = service._replies.recent(found.chain.root)
            num_known, known_turns = len(transcript.known.ids), transcript.turns
            assert num_known > len(found.token_ids)
            messages.append(reply if sends_thoughts else reply._replace(reasoning=""))
            messages += [Message("tool", "sunny", call.id) for call in reply.tool_calls]
    await service.close()


async def test_another_call_or_other_thoughts_are_not_taken_up() -> None:
    service = await open_fake_service(tokenizer=TOKENIZERS["thinking"], num_blocks=4096, max_model_len=32_000)
    asked = Message("user", "Weather?")
    reply = await reply_to(service, asking([asked], CALL, 5000))
    [call] = reply.tool_calls
    result = Message("tool", "sunny", call.id)
    other = reply._replace(tool_calls=(ToolCall(call.id, call.name, '{"city": "Rome", "days": 1}'),))
    for said, is_known in ((reply, True), (other, False), (reply._replace(reasoning="Hm."), False)):
        prompted = await service._prompter.prompt(asking([asked, said, result], SAY, 9))
        assert bool(prompted.prompt.known_ids) == is_known
    with_hole = asking([asked, reply, result._replace(content="\ue000\ue001\ue002")], SAY, 9)
    known, looked_at = [
        await service._prompter.prompt(replace(with_hole, wants_explanation=whole)) for whole in (False, True)
    ]
    assert list(known.token_ids) == list(looked_at.token_ids)
    await service.close()
