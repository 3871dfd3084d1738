"""Rendering a request's messages in one go, for tests that care for the text and not for the steps to it."""

from collections.abc import Sequence
from typing import Any

from sessions import render as rendering
from sessions.conversation import canonical
from sessions.prompt import ChatTemplate, Prompt
from sessions.types import Message, Tool


def render(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    template: ChatTemplate,
    *,
    stable_first: bool = False,
    **more: Any,
) -> Prompt:
    return rendering.render(canonical(messages, tools, stable_first=stable_first), template, **more)
