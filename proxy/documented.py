"""What a handler says of its answers that neither its signature nor its guards say; `proxy/openapi.py` reads it.

    @post(status_code=200, summary="...", opt=answers(404, 504, events=ChatCompletionChunk))

Not to be said here: 401 and 429 (the guards say it), 400, 408 and 413 (a body says it), 500 and 503 (everything).
"""

from typing import Any

OPT_KEY = "answers"


EXAMPLE: dict[str, Any] = {"model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "Hello!"}]}
"""A body of a chat completion, for the docs page to begin with; the default model's name."""


def answers(
    *errors: int, events: Any = None, other: dict[int, Any] | None = None, example: Any = None
) -> dict[str, Any]:
    """`opt` of a handler, or of a controller for all of its handlers.

    errors: statuses with OpenAI's error body; each must be in `openapi.ERRORS`. events: type of the JSON in each event
    if the answer can be a stream. other: statuses that have a body of their own, and its type. example: a body to try.
    """
    return {OPT_KEY: {"errors": errors, "events": events, "other": other or {}, "example": example}}
