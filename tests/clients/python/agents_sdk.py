"""openai-agents, over chat completions; and over responses, which is its default."""

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    ToolCallItem,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from task import HELLO, MAX_TOKENS, PERSON, WEATHER, Person, get_weather, run

set_tracing_disabled(True)


def agent(base_url: str, model: str, max_tokens: int = MAX_TOKENS, tool_choice: Any = None, **options: Any) -> Any:
    served = OpenAIChatCompletionsModel(model, AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0))
    settings = ModelSettings(max_tokens=max_tokens, temperature=0, tool_choice=tool_choice)
    return Agent("assistant", instructions="Be brief.", model=served, model_settings=settings, **options)


def chat(base_url: str, model: str) -> Any:
    return Runner.run_sync(agent(base_url, model), HELLO).final_output


def stream(base_url: str, model: str) -> Any:
    async def pieces() -> list[str]:
        streamed = Runner.run_streamed(agent(base_url, model), HELLO)
        events = [event async for event in streamed.stream_events()]
        raw = [event.data for event in events if event.type == "raw_response_event"]
        return [data.delta for data in raw if data.type == "response.output_text.delta"]

    return asyncio.run(pieces())


def tools(base_url: str, model: str) -> Any:
    asked = agent(base_url, model, 200, "required", tools=[function_tool(get_weather)])
    items = Runner.run_sync(asked, WEATHER, max_turns=3).new_items
    calls = [item.raw_item for item in items if isinstance(item, ToolCallItem)]
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def structured(base_url: str, model: str) -> Any:
    return Runner.run_sync(agent(base_url, model, 200, output_type=Person), PERSON).final_output.model_dump()


def responses(base_url: str, model: str) -> Any:
    """What the package does by itself."""
    served = OpenAIResponsesModel(model, AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0))
    asked = Agent("assistant", model=served, model_settings=ModelSettings(max_tokens=MAX_TOKENS))
    return Runner.run_sync(asked, HELLO).final_output


run("openai-agents", responses=responses, chat=chat, stream=stream, tools=tools, structured=structured)
