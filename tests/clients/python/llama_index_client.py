"""LlamaIndex, through llama-index-llms-openai-like; /v1/responses through llama-index-llms-openai."""

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from task import HELLO, MAX_TOKENS, PERSON, WEATHER, Person, get_weather, run


def llm(base_url: str, model: str, max_tokens: int = MAX_TOKENS, **options: Any) -> OpenAILike:
    return OpenAILike(
        model=model,
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=max_tokens,
        temperature=0,
        max_retries=0,
        **options,
    )


def chat(base_url: str, model: str) -> Any:
    return llm(base_url, model).chat([ChatMessage(content=HELLO)]).message.content


def stream(base_url: str, model: str) -> Any:
    return [piece.delta for piece in llm(base_url, model).stream_chat([ChatMessage(content=HELLO)])]


def responses(base_url: str, model: str) -> Any:
    served = OpenAIResponses(
        model=model,
        api_base=base_url,
        api_key="none",
        max_output_tokens=MAX_TOKENS,
        max_retries=0,
        context_window=2048,
    )
    return served.chat([ChatMessage(content=HELLO)]).message.content


def tools(base_url: str, model: str) -> Any:
    served = llm(base_url, model, 200)
    weather = FunctionTool.from_defaults(get_weather)
    answer = served.chat_with_tools([weather], user_msg=WEATHER, tool_required=True)
    calls = served.get_tool_calls_from_response(answer)
    return [{"name": call.tool_name, "arguments": call.tool_kwargs} for call in calls]


def structured(base_url: str, model: str) -> Any:
    served = llm(base_url, model, 200, should_use_structured_outputs=True)
    return served.as_structured_llm(Person).chat([ChatMessage(content=PERSON)]).raw.model_dump()


run("llama-index-llms-openai-like", chat=chat, stream=stream, responses=responses, tools=tools, structured=structured)
