"""Everything that `sessions` raises on purpose. Data, not HTTP: `proxy/errors.py` has the one table of statuses.

SessionError
├── InvalidRequest           the caller's fault; names the parameter
│   └── ContextLengthExceeded
├── ModelNotFound            no such model is served here
├── NotStored                no such response, conversation or item is stored for this tenant
├── StoreUnavailable         what is stored cannot be asked for now
├── Overloaded               a bound is reached; says when to come back
├── Draining                 the server is going away
├── EngineFailed             the engine thread died or this step raised
└── ModelRefused             at load: this model cannot be served exactly, and why
"""


class SessionError(Exception):
    """Base of the tree above."""


class InvalidRequest(SessionError):
    """`param` is the OpenAI path of the offending field, e.g. `messages[2].role`."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    """The prompt (plus one token of reply) does not fit the context or the pool.

    is_lower_bound: the prompt was refused before all of it was encoded, and has `num_prompt_tokens` or more.
    """

    def __init__(
        self, *, num_prompt_tokens: int, max_model_len: int, is_lower_bound: bool = False, param: str = "messages"
    ) -> None:
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. "
            f"However, your {param} resulted in {'at least ' if is_lower_bound else ''}{num_prompt_tokens} tokens.",
            param=param,
            code="context_length_exceeded",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_model_len = max_model_len


class ModelNotFound(SessionError):
    """`model` is what the caller asked for; the message quotes no more of it than a name can be."""

    def __init__(self, model: str) -> None:
        shown = model if len(model) <= 200 else model[:200] + "…"
        super().__init__(f"The model '{shown}' does not exist or you do not have access to it.")
        self.model = model


class NotStored(SessionError):
    """kind: "response", "conversation" or "item". param: where the caller named it, if that was in a body."""

    def __init__(self, kind: str, name: str, param: str | None = None) -> None:
        shown = name if len(name) <= 200 else name[:200] + "…"
        super().__init__(f"{kind.capitalize()} with id '{shown}' not found.")
        self.kind = kind
        self.name = name
        self.param = param


class StoreUnavailable(SessionError):
    """Redis, which has it, does not answer; a retry may succeed."""

    def __init__(self) -> None:
        super().__init__("Stored responses cannot be reached right now.")


class Overloaded(SessionError):
    """A queue or in-flight bound is reached; `retry_after_s` is an estimate from the measured drain rate."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(SessionError):
    """New work is refused because the process is shutting down."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down.")


class EngineFailed(SessionError):
    """Inside the engine; the caller's request is lost and a retry may succeed."""


class ModelRefused(SessionError):
    """Raised while loading. The message names the architecture and the reason."""
