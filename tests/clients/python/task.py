"""What each client is asked to do, and how it reports: one JSON line on stdout. Runs in the environment of clients."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

HELLO = "Say hello in one short sentence."
WEATHER = "What is the weather in Paris?"
PERSON = "Ada is a 36 years old mathematician. Who is it about?"
MAX_TOKENS = 48


class Person(BaseModel):
    """A person and how old they are. Bounded: a small model ends nothing of its own accord."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=40)
    age: int = Field(ge=0, le=150)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


Task = Callable[[str, str], Any]
"""`base_url` and `model` into what the client made of the answer."""


def run(package: str, **tasks: Task) -> None:
    """`SCRIPT BASE_URL MODEL TASK`; without arguments, the tasks that there are."""
    if len(sys.argv) == 1:
        print(json.dumps(sorted(tasks)))
        return
    base_url, model, task = sys.argv[1:]
    print(json.dumps({"version": version(package), "result": tasks[task](base_url, model)}))
