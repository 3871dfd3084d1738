"""pydantic-ai."""

import asyncio
from typing import Any

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from task import HELLO, MAX_TOKENS, PERSON, Person, run


def agent(base_url: str, model: str, max_tokens: int = MAX_TOKENS, **options: Any) -> Any:
    served = OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none"))
    return Agent(served, model_settings={"max_tokens": max_tokens, "temperature": 0.0}, **options)


def chat(base_url: str, model: str) -> Any:
    return agent(base_url, model).run_sync(HELLO).output


def stream(base_url: str, model: str) -> Any:
    async def pieces() -> list[str]:
        async with agent(base_url, model).run_stream(HELLO) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    return asyncio.run(pieces())


def tools(base_url: str, model: str) -> Any:
    """Its way to say that a tool must be called: the output is a tool's arguments."""
    output = agent(base_url, model, 200, output_type=ToolOutput(Person, name="person")).run_sync(PERSON).output
    return [{"name": "person", "arguments": output.model_dump()}]


def structured(base_url: str, model: str) -> Any:
    return agent(base_url, model, 200, output_type=NativeOutput(Person)).run_sync(PERSON).output.model_dump()


def responses(base_url: str, model: str) -> Any:
    served = OpenAIResponsesModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none"))
    return Agent(served, model_settings={"max_tokens": MAX_TOKENS}).run_sync(HELLO).output


run("pydantic-ai-slim", responses=responses, chat=chat, stream=stream, tools=tools, structured=structured)
