"""Simon Willison's llm, with the server as one of its extra OpenAI models."""

import json
from typing import Any

from llm.default_plugins.openai_models import Chat, Responses
from task import HELLO, MAX_TOKENS, PERSON, Person, run


def served(base_url: str, model: str) -> Chat:
    chat = Chat("anaphora", key="none", model_name=model, api_base=base_url, supports_schema=True)
    chat.needs_key = None
    return chat


def chat(base_url: str, model: str) -> Any:
    return served(base_url, model).prompt(HELLO, stream=False, key="none", max_tokens=MAX_TOKENS).text()


def stream(base_url: str, model: str) -> Any:
    return list(served(base_url, model).prompt(HELLO, stream=True, key="none", max_tokens=MAX_TOKENS))


def responses(base_url: str, model: str) -> Any:
    served = Responses("anaphora", key="none", model_name=model, api_base=base_url)
    served.needs_key = None
    return served.prompt(HELLO, stream=True, key="none", max_tokens=MAX_TOKENS).text()


def structured(base_url: str, model: str) -> Any:
    response = served(base_url, model).prompt(
        PERSON, stream=False, key="none", schema=Person, max_tokens=200, temperature=0
    )
    return json.loads(response.text())


run("llm", chat=chat, stream=stream, responses=responses, structured=structured)
