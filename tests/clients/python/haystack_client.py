"""Haystack's OpenAIChatGenerator and OpenAIResponsesChatGenerator."""

from typing import Any

from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from task import HELLO, MAX_TOKENS, PERSON, WEATHER, Person, get_weather, run


def reply(base_url: str, model: str, text: str, max_tokens: int = MAX_TOKENS, **options: Any) -> ChatMessage:
    asked = options.pop("asked", {})
    generator = OpenAIChatGenerator(
        api_key=Secret.from_token("none"),
        model=model,
        api_base_url=base_url,
        generation_kwargs={"max_tokens": max_tokens, "temperature": 0, **asked},
        max_retries=0,
        **options,
    )
    return generator.run([ChatMessage.from_user(text)])["replies"][0]


def chat(base_url: str, model: str) -> Any:
    return reply(base_url, model, HELLO).text


def stream(base_url: str, model: str) -> Any:
    pieces: list[str] = []
    reply(base_url, model, HELLO, streaming_callback=lambda chunk: pieces.append(chunk.content))
    return pieces


def responses(base_url: str, model: str) -> Any:
    generator = OpenAIResponsesChatGenerator(
        api_key=Secret.from_token("none"),
        model=model,
        api_base_url=base_url,
        generation_kwargs={"max_output_tokens": MAX_TOKENS},
        max_retries=0,
    )
    return generator.run([ChatMessage.from_user(HELLO)])["replies"][0].text


def tools(base_url: str, model: str) -> Any:
    weather = create_tool_from_function(get_weather)
    answer = reply(base_url, model, WEATHER, 200, tools=[weather], asked={"tool_choice": "required"})
    return [{"name": call.tool_name, "arguments": call.arguments} for call in answer.tool_calls]


def structured(base_url: str, model: str) -> Any:
    answer = reply(base_url, model, PERSON, 200, asked={"response_format": Person})
    return Person.model_validate_json(answer.text).model_dump()


run("haystack-ai", chat=chat, stream=stream, responses=responses, tools=tools, structured=structured)
