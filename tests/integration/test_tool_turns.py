"""Turns with calls and thoughts are token-exact too (P1), over HTTP and the real client.

The fake model's replies are random bytes within a grammar, so what is read back and not spliced shows in the counts.
"""

import json
import re
from typing import Any

import pytest
from openai import AsyncOpenAI

from sessions.service import ChatService
from sessions.tokenizer import Tokenizer
from tests import templates
from tests.fakes import byte_tokenizer, open_fake_service
from tests.integration.test_conversation import idle, serving

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Forecast.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now"}},
]
FORCED = {"type": "function", "function": {"name": "get_weather"}}
RESULT = "<|im_end|>\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def num_tokens(glue: str) -> int:
    """A token is a byte, or a control token."""
    control = re.findall(r"<\|im_end\|>|<\|im_start\|>|<think>", glue)
    return len(control) + len(glue.encode()) - len("".join(control))


async def ask(client: AsyncOpenAI, messages: list[Any], **more: Any) -> Any:
    options: dict[str, Any] = {"max_tokens": 300, "temperature": 1.0, "tools": TOOLS, "tool_choice": FORCED} | more
    return await client.chat.completions.create(model="fake", messages=messages, **options)


def recomputed(reply: Any, glue: str) -> int:
    usage = reply.usage
    return int(usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens - num_tokens(glue))


def sent_back(message: Any, number: int) -> dict[str, Any]:
    """As clients do it: the message dumped, rebuilt without content, or with arguments that were parsed between."""
    if number % 3 == 0:
        return dict(message.model_dump())
    [call] = message.tool_calls
    arguments = call.function.arguments
    if number % 3 == 1:
        parsed = json.loads(arguments)
        arguments = json.dumps(dict(reversed(parsed.items())), indent=2, ensure_ascii=True)
    function = {"name": call.function.name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call.id, "type": "function", "function": function}],
    }


async def test_ten_turns_of_calls_recompute_one_token_each_at_most() -> None:
    async with serving(num_blocks=2048, max_model_len=16_000) as (client, service):
        messages: list[Any] = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Weather?"}]
        reply = await ask(client, messages)
        for number in range(10):
            message = reply.choices[0].message
            assert reply.choices[0].finish_reason == "tool_calls" and message.content is None
            result = f"sunny <|im_end|> {number}" if number == 5 else f"sunny {number}"
            messages += [
                sent_back(message, number),
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result},
            ]
            reply = await ask(client, messages)
            if number != 5:
                assert recomputed(reply, RESULT.format(result)) <= 1
            assert reply.anaphora["spliced_messages"] == number + 1
        await idle(service)


async def test_text_after_calls_and_another_question() -> None:
    async with serving(num_blocks=2048, max_model_len=16_000) as (client, _):
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        called = (await ask(client, messages)).choices[0].message
        messages += [called, {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "sunny"}]
        answer = await ask(client, messages, tool_choice="none", max_tokens=20, extra_body={"ignore_eos": True})
        assert recomputed(answer, RESULT.format("sunny")) <= 1
        messages += [answer.choices[0].message, {"role": "user", "content": "And now?"}]
        last = await ask(client, messages)
        assert recomputed(last, QUESTION.format("And now?")) <= 1
        assert last.anaphora["spliced_messages"] == 2


async def test_an_edited_call_is_read_back() -> None:
    async with serving(num_blocks=2048, max_model_len=16_000) as (client, _):
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        called = (await ask(client, messages)).choices[0].message.model_dump()
        called["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome", "days": 1}'
        messages += [called, {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "sunny"}]
        reply = await ask(client, messages)
        assert reply.anaphora["spliced_messages"] == 0


async def test_ids_of_calls_and_unmentioned_tools_do_not_split_the_cache() -> None:
    async with serving(num_blocks=2048, max_model_len=16_000) as (client, _):
        call = {"id": "call_a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        counts = []
        for call_id in ("call_a", "call_b"):
            messages: list[Any] = [
                {"role": "user", "content": "Time?"},
                {"role": "assistant", "tool_calls": [call | {"id": call_id}]},
                {"role": "tool", "tool_call_id": call_id, "content": "noon"},
            ]
            allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FORCED]}}
            reply = await ask(client, messages, tool_choice=FORCED if call_id == "call_a" else allowed)
            counts.append((reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens))
        assert counts[1] == (counts[0][0], counts[0][0] - 1)


@pytest.mark.parametrize("name", ["GEMMA", "MISTRAL"])
@pytest.mark.parametrize("has_system", [False, True])
async def test_templates_that_were_not_made_for_it_are_token_exact_too(name: str, has_system: bool) -> None:
    """One takes no tools and no system message; the other moves both along with the last user message."""
    tokenizer = byte_tokenizer(getattr(templates, name), ("[TOOL_CALLS]",))
    if has_system and not tokenizer.template.dialect.has_system:
        return
    service = await open_fake_service(tokenizer=tokenizer, num_blocks=2048, max_model_len=16_000)
    async with serving(service) as (client, _):
        messages: list[Any] = [{"role": "system", "content": "Be terse."}] if has_system else []
        num_known = num_replies = 0
        for number in range(5):
            messages.append({"role": "user", "content": f"Weather {number}?"})
            for choice in (FORCED, "none"):
                reply = await ask(client, messages, tool_choice=choice, max_tokens=300 if choice == FORCED else 9)
                usage, [made] = reply.usage, reply.choices
                assert usage.prompt_tokens_details.cached_tokens >= num_known - 2, number  # the end, the last token
                assert reply.anaphora["spliced_messages"] == num_replies
                num_known, num_replies = usage.total_tokens, num_replies + 1
                messages.append(sent_back(made.message, number) if choice == FORCED else made.message.model_dump())
                calls = made.message.tool_calls or ()
                messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]


OPENS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is not defined or enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


THINKING = "<|im_end|>\n<|im_start|>assistant\n<think>\n"


@pytest.fixture(scope="module")
def thinking() -> Tokenizer:
    """A template that opens thoughts in the prompt and leaves them out of earlier replies."""
    return byte_tokenizer(OPENS_THOUGHTS, ("<think>", "</think>", "<tool_call>", "</tool_call>"))


@pytest.mark.parametrize("is_sent_back", [False, True])
async def test_thoughts_stay_and_are_reused(thinking: Tokenizer, is_sent_back: bool) -> None:
    service = await open_fake_service(tokenizer=thinking, num_blocks=2048, max_model_len=16_000)
    async with serving(service) as (client, _):
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        reply = await ask(client, messages, max_tokens=5000)  # by then the fake model drew the end of its thoughts
        message = reply.choices[0].message
        assert reply.choices[0].finish_reason == "tool_calls" and message.content is None
        assert len(message.reasoning_content) > 0
        num_reasoning = reply.usage.completion_tokens_details.reasoning_tokens
        assert 0 < num_reasoning < reply.usage.completion_tokens
        dumped = message.model_dump()
        if not is_sent_back:
            del dumped["reasoning_content"]
        messages += [dumped, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        again = await ask(client, messages, max_tokens=1)
        assert again.anaphora["spliced_messages"] == 1
        glue = f"<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response>{THINKING}"
        assert recomputed(again, glue) <= 1


async def test_thoughts_that_are_dropped_are_in_no_prompt(thinking: Tokenizer) -> None:
    service = await open_fake_service(tokenizer=thinking, keeps_reasoning=False, num_blocks=2048, max_model_len=16_000)
    async with serving(service) as (client, _):
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        first = await ask(client, messages, max_tokens=5000)
        message = first.choices[0].message
        messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        again = await ask(client, messages, max_tokens=1)
        assert again.anaphora["spliced_messages"] == 0
        assert (
            again.usage.prompt_tokens
            < first.usage.prompt_tokens + 150 + len(message.tool_calls[0].function.arguments) * 4
        )


async def test_a_template_option_is_part_of_the_prompt(thinking: Tokenizer) -> None:
    service: ChatService = await open_fake_service(tokenizer=thinking, num_blocks=512)
    async with serving(service) as (client, _):
        counts = []
        for options in ({}, {"enable_thinking": True}, {"enable_thinking": False}, {"unread": "x"}):
            reply = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": "Hi"}],
                max_tokens=1,
                extra_body={"chat_template_kwargs": options},
            )
            counts.append(reply.usage.prompt_tokens if reply.usage else 0)
        assert counts == [counts[0], counts[0], counts[0] - 2, counts[0]]  # `<think>` and a line end
