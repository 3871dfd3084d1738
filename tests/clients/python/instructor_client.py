"""instructor: objects, whole and as they grow, and a chat without a model of its answer. It streams no text."""

from typing import Any

import instructor
from openai import OpenAI
from task import HELLO, MAX_TOKENS, PERSON, Person, run


def client(base_url: str, mode: instructor.Mode = instructor.Mode.JSON_SCHEMA) -> Any:
    return instructor.from_openai(OpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)


def asking(text: str, max_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}


def made(base_url: str, model: str, mode: instructor.Mode) -> Any:
    asked = asking(PERSON, 200)
    return client(base_url, mode).chat.completions.create(model=model, response_model=Person, **asked).model_dump()


def chat(base_url: str, model: str) -> Any:
    answer = client(base_url).chat.completions.create(model=model, response_model=None, **asking(HELLO, MAX_TOKENS))
    return answer.choices[0].message.content


def partial(base_url: str, model: str) -> Any:
    """The object again and again, as far as it is known."""
    growing = client(base_url).chat.completions.create_partial(
        model=model, response_model=Person, **asking(PERSON, 200)
    )
    *_, last = growing
    return last.model_dump()


def tools(base_url: str, model: str) -> Any:
    return [{"name": "Person", "arguments": made(base_url, model, instructor.Mode.TOOLS)}]


def structured(base_url: str, model: str) -> Any:
    return made(base_url, model, instructor.Mode.JSON_SCHEMA)


run("instructor", chat=chat, partial=partial, tools=tools, structured=structured)
