"""LangChain, through langchain-openai."""

from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from task import HELLO, MAX_TOKENS, PERSON, WEATHER, Person, get_weather, run


def model_of(base_url: str, model: str, max_tokens: int = MAX_TOKENS) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=base_url, api_key="none", max_tokens=max_tokens, temperature=0)


def chat(base_url: str, model: str) -> Any:
    return model_of(base_url, model).invoke(HELLO).content


def stream(base_url: str, model: str) -> Any:
    return [chunk.content for chunk in model_of(base_url, model).stream(HELLO)]


def tools(base_url: str, model: str) -> Any:
    bound = model_of(base_url, model, 200).bind_tools([tool(get_weather)], tool_choice="required")
    return [{"name": call["name"], "arguments": call["args"]} for call in bound.invoke(WEATHER).tool_calls]


def tools_streamed(base_url: str, model: str) -> Any:
    """Chunks add up, their calls with them."""
    bound = model_of(base_url, model, 200).bind_tools([tool(get_weather)], tool_choice="required")
    first, *rest = bound.stream(WEATHER)
    for chunk in rest:
        first += chunk
    return [{"name": call["name"], "arguments": call["args"]} for call in first.tool_calls]


def structured(base_url: str, model: str) -> Any:
    formatted = model_of(base_url, model, 200).with_structured_output(Person, method="json_schema")
    return formatted.invoke(PERSON).model_dump()


def responses(base_url: str, model: str) -> Any:
    served = ChatOpenAI(model=model, base_url=base_url, api_key="none", max_tokens=MAX_TOKENS, use_responses_api=True)
    return "".join(chunk.text for chunk in served.stream(HELLO))


run(
    "langchain-openai",
    responses=responses,
    chat=chat,
    stream=stream,
    tools=tools,
    tools_streamed=tools_streamed,
    structured=structured,
)
