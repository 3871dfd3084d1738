"""The OpenAI wire as msgspec Structs: what a request may hold, and what replies look like.

Bounds that a single field can state stand here; what needs two fields, settings or the model is in
`translate.py`. `None` is "unset" for every optional parameter, as it is for OpenAI. Unknown fields are
ignored; parameters that are known and not built are declared as `Any`, so that `translate.py` can refuse them
by name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.cache_schemas import CacheExplanation
from sessions.types import PromptReport, Usage

# --- request
# -----------------------------------------------------------------------------------------------------------


class PromptCacheBreakpoint(Struct, frozen=True, kw_only=True):
    """The end of a reusable prefix, to the token. With `ttl` it is kept at least that long; in explicit mode it is all
    that is read and written; with `stable_first` it says which system parts go first.
    """

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class RefusalPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str


class ImagePart(Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """Declared to be refused by name, as the next two are."""


class AudioPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    pass


class FilePart(Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    pass


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | Annotated[list[ContentPart], Meta(min_length=1)]


class SystemMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="system"):
    content: Content


class DeveloperMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    content: Content


class UserMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="user"):
    content: Content


class AssistantMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    content: Content | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class ToolMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    content: Content
    tool_call_id: str


class FunctionMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="function"):
    """OpenAI's legacy; declared to be refused by name."""


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class StreamOptions(Struct, frozen=True, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptCacheOptions(Struct, frozen=True, kw_only=True):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Prediction(Struct, frozen=True, kw_only=True, tag_field="type", tag="content"):
    """A speed hint: tried as drafts, never taken for an answer."""

    content: Content


StopSequence = Annotated[str, Meta(min_length=1, max_length=1000)]
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class AnaphoraOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only this server has.

    splice: take replies that come back as text as the tokens that were generated.
    priority: how long what is computed stays: `low` goes first, `high` stays as with a time to live.
    explain: say in the reply what the cache had of the prompt, and why no more.
    """

    splice: bool = True
    priority: Literal["low", "normal", "high"] = "normal"
    explain: bool = False


class ChatCompletionRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]

    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: StopSequence | Annotated[list[StopSequence], Meta(max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    prediction: Prediction | None = None
    anaphora: AnaphoraOptions | None = None

    # Taken, checked, without effect on the answer.
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: bool | None = None
    user: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    # Refused by name, wholly or for some values.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logprobs: bool | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    moderation: Any = None
    prompt_cache_options: PromptCacheOptions | None = None
    repetition_penalty: float | None = None
    response_format: Any = None
    tool_choice: Any = None
    tools: list[Any] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    web_search_options: Any = None


# -- reply --
# -----------


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=usage.cached_tokens, cache_write_tokens=usage.cache_write_tokens
            ),
            completion_tokens_details=CompletionTokensDetails(
                accepted_prediction_tokens=usage.accepted_prediction_tokens,
                rejected_prediction_tokens=usage.rejected_prediction_tokens,
            ),
        )


class Moved(Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    source: str
    target: str


class AnaphoraReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was done with the request.

    spliced_messages: replies in the prompt taken as the tokens that were generated. moved: what the canonical order
    put elsewhere. cache: on request, what the cache had of the prompt and why no more.
    """

    spliced_messages: Annotated[int, Meta(ge=0)]
    moved: list[Moved] = []
    cache: CacheExplanation | None = None

    @classmethod
    def of(cls, report: PromptReport) -> "AnaphoraReport":
        return cls(
            spliced_messages=report.num_spliced,
            moved=[Moved(source=move.source, target=move.target) for move in report.moves],
            cache=None if report.explanation is None else CacheExplanation.of(report.explanation),
        )


class AnswerMessage(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(Struct, frozen=True, kw_only=True):
    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class ChunkDelta(Struct, frozen=True, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    index: int
    delta: ChunkDelta
    finish_reason: str | None = None
    logprobs: None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class Model(Struct, frozen=True, kw_only=True):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "anaphora"


class ModelList(Struct, frozen=True, kw_only=True):
    data: list[Model]
    object: Literal["list"] = "list"


CHAT_DECODER = msgspec.json.Decoder(ChatCompletionRequest)
ENCODER = msgspec.json.Encoder()
