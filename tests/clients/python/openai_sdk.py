"""OpenAI's own client, in the version that the other packages are content with."""

from typing import Any

from openai import OpenAI
from task import HELLO, MAX_TOKENS, PERSON, WEATHER, Person, run


def asked(text: str) -> Any:
    return [{"role": "user", "content": text}]


def client(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key="none", max_retries=0)


def chat(base_url: str, model: str) -> Any:
    answer = client(base_url).chat.completions.create(model=model, messages=asked(HELLO), max_tokens=MAX_TOKENS)
    return answer.choices[0].message.content


def stream(base_url: str, model: str) -> Any:
    chunks = client(base_url).chat.completions.create(
        model=model, messages=asked(HELLO), max_tokens=MAX_TOKENS, stream=True
    )
    return [chunk.choices[0].delta.content or "" for chunk in chunks]


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS, "strict": True}}


def calls(answer: Any) -> Any:
    return [{"name": c.function.name, "arguments": c.function.arguments} for c in answer.choices[0].message.tool_calls]


def tools(base_url: str, model: str) -> Any:
    return calls(
        client(base_url).chat.completions.create(
            model=model, messages=asked(WEATHER), tools=[TOOL], tool_choice="required", max_tokens=200, temperature=0
        )
    )


def tools_streamed(base_url: str, model: str) -> Any:
    """Through the helper, which puts the pieces together."""
    with client(base_url).chat.completions.stream(
        model=model, messages=asked(WEATHER), tools=[TOOL], tool_choice="required", max_tokens=200, temperature=0
    ) as streamed:
        return calls(streamed.get_final_completion())


def structured(base_url: str, model: str) -> Any:
    answer = client(base_url).chat.completions.parse(
        model=model, messages=asked(PERSON), response_format=Person, max_tokens=200, temperature=0
    )
    parsed = answer.choices[0].message.parsed
    return parsed and parsed.model_dump()


def responses(base_url: str, model: str) -> Any:
    """Two stored turns, the second streamed."""
    served = client(base_url)
    first = served.responses.create(model=model, input=HELLO, max_output_tokens=MAX_TOKENS)
    events = served.responses.create(
        model=model, input=HELLO, previous_response_id=first.id, max_output_tokens=MAX_TOKENS, stream=True
    )
    return first.output_text + "".join(event.delta for event in events if event.type == "response.output_text.delta")


run(
    "openai",
    responses=responses,
    chat=chat,
    stream=stream,
    tools=tools,
    tools_streamed=tools_streamed,
    structured=structured,
)
