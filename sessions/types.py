"""Values that come in: ids and what a request asks. Those that go back are in `reports.py`.

Counts are `num_*`; durations end `_s`; sizes are tokens unless the name says `_bytes`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NewType

TokenId = NewType("TokenId", int)
BlockId = NewType("BlockId", int)
"""Index of a block in the KV pool."""
BlockHash = NewType("BlockHash", bytes)
"""16 bytes: the chained hash of a block and everything before it (`sessions/hashing.py`)."""
RequestId = NewType("RequestId", str)

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """Where a client says that a reusable prefix ends. ttl_s: keep it at least that long after its last use."""

    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """`content[start:end]` of a message, and the breakpoint that the client set at its end."""

    start: int
    end: int
    breakpoint: Breakpoint | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made. arguments: JSON as it was written, which may not be valid."""

    id: str
    name: str
    arguments: str


class Message(NamedTuple):
    """One chat message, after the wire: content parts are joined, `null` content is the empty string.

    A tuple, because every request makes one of each message it has ever sent.

    parts: cover `content` from left to right if one of them is marked; else empty, for a string and its pieces mean
    the same. tool_calls, reasoning: an assistant's only.
    """

    role: Role
    content: str = ""
    tool_call_id: str | None = None
    parts: tuple[Part, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is its JSON Schema. strict: arguments must match it.

    param: the request's parameter that the schema comes from, for refusals.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False
    param: str = field(default="tools", compare=False)


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """What an operator declared shared between tenants: whatever prompt begins as this one renders."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the model may or must call. names: only these; None is all."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    is_parallel: bool = True


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a reply must match. source: a JSON Schema, an object, as JSON; or llguidance's dialect of Lark.

    param: the request's parameter that it comes from, for refusals. parts: schemas that it embeds, which may be to
    blame. is_lenient: of a schema, keywords that cannot be enforced are passed over.
    """

    kind: Literal["json_schema", "lark"]
    source: str
    param: str = field(default="response_format", compare=False)
    parts: tuple["Grammar", ...] = field(default=(), compare=False)
    is_lenient: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is drawn. Bounds are the wire's business (`proxy/schemas.py`); these are already valid.

    temperature: 0 is greedy. top_k: 0 is off. min_p: 0 is off. top_p: 1 is off.
    seed: any 64-bit int; None draws one. max_tokens: None is "up to the context".
    logit_bias: token id -> added to the logit. num_logprobs: alternatives reported with each token; None is no
    report. grammar: None is any text. repetition_penalty: 1 is off; of tokens in prompt or output, positive logits are
    divided by it and others multiplied.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whom an API key stands for. The tenant's cache key is derived on the server, never sent by a client."""

    id: str = "default"


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """What a request says about the cache.

    is_explicit: read and write at breakpoints only, so nothing without any. ttl_s: for all of the prompt.
    group: which requests belong together, in the client's words; shares nothing and separates nothing.
    """

    is_explicit: bool = False
    ttl_s: float | None = None
    priority: Literal["low", "normal", "high"] = "normal"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion as the service takes it."""

    messages: tuple[Message, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    tenant: Tenant = field(default_factory=Tenant)
    cache_salt: str | None = None
    """Narrows sharing inside the tenant; never widens it."""
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    prediction: str = ""
    """What the client expects the answer to be; a source of drafts, never of tokens."""
    cache: CacheOptions = CacheOptions()
    wants_explanation: bool = False
    splice: bool = True
    """Put the ids that were generated in the place of the replies that come back as text."""
    compared: "ChatRequest | None" = None
    """An earlier request of the same tenant's, to say how this prompt goes with its own."""
    template_options: tuple[tuple[str, str | bool | int], ...] = ()
    """Variables for the chat template, by name; those that it does not read have no effect."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Texts to go on with, as the service takes them: each a text, or its token ids.

    echo: say each prompt again before its completions. takes_control_tokens: ids of control tokens are meant.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    tenant: Tenant = field(default_factory=Tenant)
    cache_salt: str | None = None
    cache: CacheOptions = CacheOptions()
    echo: bool = False
    takes_control_tokens: bool = False
