"""The wire of /v1/responses and /v1/conversations: what a request may hold, what is answered and stored.

As in `schemas.py`: bounds that one field can state stand here, `None` is unset, unknown fields are ignored, and what
is known and not built is declared as `Any`, to be refused by name. Input items come in many spellings, so they are read
one by one (`response_items.py`); the items here are what they become.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.cache_schemas import CacheHit, CacheMiss
from proxy.schemas import AnaphoraOptions, AnaphoraReport, Metadata, PromptCacheBreakpoint
from sessions.types import Usage

# -- items: in answers, in lists, in the store --

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | UnsetType | None = UNSET


class TopLogprob(Struct, frozen=True, kw_only=True):
    token: str
    bytes: list[int]
    logprob: float


class Logprob(Struct, frozen=True, kw_only=True):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob] = []


class OutputText(Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Logprob] = []


class OutputRefusal(Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str


class MessageItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["user", "system", "developer", "assistant"]
    content: list[InputText | OutputText | OutputRefusal]
    status: Status = "completed"


class FunctionCallItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class FunctionCallOutputItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str | list[InputText]
    status: Status = "completed"


class SummaryText(Struct, frozen=True, kw_only=True, tag_field="type", tag="summary_text"):
    text: str


class ReasoningText(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str


class ReasoningItem(Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    status: Status = "completed"


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
OutputItem = MessageItem | FunctionCallItem | ReasoningItem


# -- requests --


class ConversationReference(Struct, frozen=True, kw_only=True):
    id: str


class ResponseCacheOptions(Struct, frozen=True, kw_only=True):
    """prewarm: compute the prompt and say nothing. comparison_response_id: ask for `prompt_cache_diagnostics`."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: bool | None = None
    comparison_response_id: str | None = None


class Reasoning(Struct, frozen=True, kw_only=True, omit_defaults=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class TextFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", rename={"schema_": "schema"}
):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema_: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, kw_only=True):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class FunctionTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    name: str


class AllowedTools(Struct, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ResponseStreamOptions(Struct, frozen=True, kw_only=True):
    include_obfuscation: bool | None = None


Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponseContext(Struct, frozen=True, kw_only=True):
    """What a prompt is made of. Body of POST /v1/responses/input_tokens, and part of that of POST /v1/responses."""

    model: Annotated[str, Meta(min_length=1)] | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tool_choice: Any = None
    tools: list[dict[str, Any]] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationReference) else self.conversation


class ResponseRequest(ResponseContext, frozen=True, kw_only=True):
    """Body of POST /v1/responses."""

    model: Annotated[str, Meta(min_length=1)]
    include: list[Includable] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: Metadata | None = None
    prompt_cache_options: ResponseCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None

    # Not OpenAI's: what chat completions take too.
    anaphora: AnaphoraOptions | None = None
    ignore_eos: bool | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None

    # Taken, checked, without effect on the answer.
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    user: str | None = None

    # Refused by name.
    access_programs: Any = None
    background: bool | None = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    max_tool_calls: Any = None
    moderation: Any = None
    prompt: Any = None


class ConversationRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/conversations."""

    items: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/conversations/{id}."""

    metadata: Metadata | None


class ItemsRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/conversations/{id}/items."""

    items: Annotated[list[dict[str, Any]], Meta(min_length=1)]


# -- answers --


class InputTokensDetails(Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(Struct, frozen=True, kw_only=True):
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
            output_tokens_details=OutputTokensDetails(),
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        )


class ComparisonNotFound(Struct, frozen=True, kw_only=True, tag_field="type", tag="comparison_response_not_found"):
    pass


class DiagnosticsUnavailable(Struct, frozen=True, kw_only=True, tag_field="type", tag="unavailable"):
    """The prompts do not part, but what was computed is gone: `anaphora.cache` says where to."""


Diagnostics = CacheHit | CacheMiss | ComparisonNotFound | DiagnosticsUnavailable


class AppliedCacheOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    mode: Literal["implicit", "explicit"]
    ttl: Literal["30m", "12h"]
    comparison_response_id: str | None = None


class IncompleteDetails(Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct, frozen=True, kw_only=True):
    code: Literal["server_error", "rate_limit_exceeded"]
    message: str


class ResponseBody(Struct, frozen=True, kw_only=True):
    """A response, at any point of its life. store: whether it was kept, so that it can be retrieved and continued."""

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


# -- events of a stream --


class Event(Struct, kw_only=True, tag_field="type"):
    """sequence_number: rises by one with every event of a stream."""

    sequence_number: int = -1


class LifecycleEvent(Event, kw_only=True):
    response: ResponseBody


class Created(LifecycleEvent, kw_only=True, tag="response.created"):
    pass


class InProgress(LifecycleEvent, kw_only=True, tag="response.in_progress"):
    pass


class Completed(LifecycleEvent, kw_only=True, tag="response.completed"):
    pass


class Incomplete(LifecycleEvent, kw_only=True, tag="response.incomplete"):
    pass


class Failed(LifecycleEvent, kw_only=True, tag="response.failed"):
    pass


class ItemEvent(Event, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, kw_only=True, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, kw_only=True, tag="response.output_item.done"):
    pass


class EventInItem(Event, kw_only=True):
    item_id: str
    output_index: int


class EventInPart(EventInItem, kw_only=True):
    content_index: int = 0


class PartAdded(EventInPart, kw_only=True, tag="response.content_part.added"):
    part: OutputText | ReasoningText


class PartDone(EventInPart, kw_only=True, tag="response.content_part.done"):
    part: OutputText | ReasoningText


class TextDelta(EventInPart, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[Logprob] = []


class TextDone(EventInPart, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[Logprob] = []


class ReasoningDelta(EventInPart, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningDone(EventInPart, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class ArgumentsDelta(EventInItem, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(EventInItem, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


StreamEvent = (
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | ReasoningDelta
    | ReasoningDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
)

# -- lists, and what is about what is stored --


class ItemList(Struct, frozen=True, kw_only=True):
    """A page of items. first_id, last_id: empty where it is."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str
    last_id: str
    has_more: bool


class ResponseDeleted(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(Struct, frozen=True, kw_only=True):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Conversation(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


RESPONSE_DECODER = msgspec.json.Decoder(ResponseRequest)
CONTEXT_DECODER = msgspec.json.Decoder(ResponseContext)
CONVERSATION_DECODER = msgspec.json.Decoder(ConversationRequest)
CONVERSATION_UPDATE_DECODER = msgspec.json.Decoder(ConversationUpdate)
ITEMS_REQUEST_DECODER = msgspec.json.Decoder(ItemsRequest)

BODY_DECODER = msgspec.json.Decoder(ResponseBody)
ITEM_DECODER: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)
ITEMS_DECODER: msgspec.json.Decoder[list[Item]] = msgspec.json.Decoder(list[Item])
