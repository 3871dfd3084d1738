"""instructor: objects only, so it neither chats nor streams text."""

from typing import Any

import instructor
from openai import OpenAI
from task import PERSON, Person, run


def made(base_url: str, model: str, mode: instructor.Mode) -> Any:
    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none", max_retries=0), mode=mode)
    messages: Any = [{"role": "user", "content": PERSON}]
    return client.chat.completions.create(
        model=model, messages=messages, response_model=Person, max_tokens=200, max_retries=0
    ).model_dump()


def tools(base_url: str, model: str) -> Any:
    return [{"name": "Person", "arguments": made(base_url, model, instructor.Mode.TOOLS)}]


def structured(base_url: str, model: str) -> Any:
    return made(base_url, model, instructor.Mode.JSON_SCHEMA)


run("instructor", tools=tools, structured=structured)
