"""What /v1/responses and /v1/conversations answer, but for items and events."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.answer_schemas import AnaphoraReport
from proxy.cache_schemas import CacheHit, CacheMiss
from proxy.response_item_schemas import OutputItem
from proxy.response_requests import ConversationReference, FunctionTool, Reasoning, TextFormat, TextOptions
from sessions.reports import Usage


class InputTokensDetails(Struct, frozen=True, kw_only=True):
    """Where the prompt's tokens came from.

    cached_tokens: whose KV was there. cache_write_tokens: computed now and kept.
    """

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Struct, frozen=True, kw_only=True):
    """What the reply's tokens were.

    reasoning_tokens: before the answer.
    """

    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True, kw_only=True):
    """Tokens of one response.

    input_tokens: of the prompt, with all that came before. input_tokens_details: where they came from.
    output_tokens: of the reply. output_tokens_details: what they were. total_tokens: of both.
    """

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "ResponseUsage":
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.cached_tokens, cache_write_tokens=usage.cache_write_tokens
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class ComparisonNotFound(Struct, frozen=True, kw_only=True, tag_field="type", tag="comparison_response_not_found"):
    """No such response is stored for this tenant."""


class DiagnosticsUnavailable(Struct, frozen=True, kw_only=True, tag_field="type", tag="unavailable"):
    """The prompts do not part, but what was computed is gone: `anaphora.cache` says where to."""


Diagnostics = CacheHit | CacheMiss | ComparisonNotFound | DiagnosticsUnavailable


class AppliedCacheOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The request's options, with what applies where it says nothing.

    mode: `explicit` if only breakpoints were read and written. ttl: so long it is kept at least.
    comparison_response_id: as it was asked for.
    """

    mode: Literal["implicit", "explicit"]
    ttl: Literal["30m", "12h"]
    comparison_response_id: str | None = None


class IncompleteDetails(Struct, frozen=True, kw_only=True):
    """Why the reply was cut off.

    reason: the limit of the request, or of the context.
    """

    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True, kw_only=True):
    """What went wrong in a stream.

    code: OpenAI's word. message: a sentence.
    """

    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ResponseBody(Struct, frozen=True, kw_only=True):
    """A response, at any point of its life.

    id: `resp_...`. created_at, completed_at: seconds since the epoch. status: `in_progress` only inside streams.
    background: never here. error: what went wrong, if it did. incomplete_details: why it was cut off, if it was.
    output: the items that the model said. usage: tokens; null until the end. store: it was kept, so that it can be
    retrieved and continued. prompt_cache_diagnostics: how the prompt goes with the one that it was to be compared
    with. anaphora: what was done with the prompt. model, instructions, metadata, user, safety_identifier: as asked.
    previous_response_id, conversation: as asked.
    max_output_tokens, temperature, top_p, top_logprobs, truncation: as asked, or what applied.
    prompt_cache_key, prompt_cache_options, prompt_cache_retention: as asked. reasoning, service_tier, text: as
    asked, or what applied. tools, tool_choice, parallel_tool_calls: as asked, or what applied.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    completed_at: int | None = None
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    conversation: ConversationReference | None = None
    prompt_cache_diagnostics: Diagnostics | UnsetType = UNSET
    prompt_cache_key: str | None = None
    prompt_cache_options: AppliedCacheOptions | UnsetType = UNSET
    prompt_cache_retention: str | None = None
    reasoning: Reasoning = Reasoning()
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool = False
    temperature: float = 1.0
    text: TextOptions = TextOptions(format=TextFormat(), verbosity="medium")
    tool_choice: Any = "auto"
    tools: list[FunctionTool] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}
    anaphora: AnaphoraReport | UnsetType = UNSET


class ResponseDeleted(Struct, frozen=True, kw_only=True):
    """A response is forgotten.

    id: its own. deleted: true.
    """

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(Struct, frozen=True, kw_only=True):
    """How long a prompt is.

    input_tokens: with all that came before.
    """

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation, without its items.

    id: `conv_...`. created_at: seconds since the epoch. metadata: as it was last set.
    """

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(Struct, frozen=True, kw_only=True):
    """A conversation is forgotten, with its items.

    id: its own. deleted: true.
    """

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


BODY_DECODER = msgspec.json.Decoder(ResponseBody)
