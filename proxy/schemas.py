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
from proxy.format_schemas import ResponseFormat
from proxy.logprob_schemas import ChoiceLogprobs
from proxy.tool_schemas import CallPiece, Calls, ToolCallMade, ToolChoiceOption, Tools
from sessions.types import PromptReport, Usage

# --- request
# -----------------------------------------------------------------------------------------------------------


class PromptCacheBreakpoint(Struct, frozen=True, kw_only=True):
    """The end of a reusable prefix, to the token. In explicit mode breakpoints are all that is read and written; with
    the server's `stable_first` they say which system parts go first.

    mode: there is one. ttl: keep the prefix at least that long after its last use.
    """

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class TextPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A piece of a message's text; pieces are joined as they stand.

    text: may say what it likes; control tokens in it stay text. prompt_cache_breakpoint: the part ends a reusable
    prefix.
    """

    text: str
    prompt_cache_breakpoint: PromptCacheBreakpoint | None = None


class RefusalPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """What an assistant said to refuse; taken as its text.

    refusal: that text.
    """

    refusal: str


class ImagePart(Struct, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """Refused by name: this server reads text."""


class AudioPart(Struct, frozen=True, kw_only=True, tag_field="type", tag="input_audio"):
    """Refused by name: this server reads text."""


class FilePart(Struct, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """Refused by name: this server reads text."""


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | Annotated[list[ContentPart], Meta(min_length=1)]


class SystemMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """What the assistant is told to be. Those before its first turn are moved to the front.

    content: text, or its parts.
    """

    content: Content


class DeveloperMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    """The same as a system message.

    content: text, or its parts.
    """

    content: Content


class UserMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """What the user says.

    content: text, or its parts.
    """

    content: Content


class AssistantMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """An earlier reply. Sent back as it came, it is taken as the tokens that were generated.

    content: text, or its parts; null is empty. refusal: in the place of the text, if that is null.
    tool_calls: the calls it made, as they came. function_call: OpenAI's legacy; refused. reasoning_content: a
    reasoning model's, as it came; it need not come back.
    """

    content: Content | None = None
    refusal: str | None = None
    tool_calls: Calls | None = None
    function_call: Any = None
    reasoning_content: str | None = None


class ToolMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """What a tool answered.

    content: text, or its parts. tool_call_id: of the call that it answers.
    """

    content: Content
    tool_call_id: str


class FunctionMessage(Struct, frozen=True, kw_only=True, tag_field="role", tag="function"):
    """OpenAI's legacy: what a function answered; the same as a tool message.

    content: text, or its parts; null is empty. name: of the function, in the place of the call's id.
    """

    content: Content | None = None
    name: str


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage


class StreamOptions(Struct, frozen=True, kw_only=True):
    """Only with `stream`.

    include_usage: one more chunk at the end, with the usage and no choice. include_obfuscation: without effect.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptCacheOptions(Struct, frozen=True, kw_only=True):
    """What the cache may do with this request.

    mode: `implicit` reuses and stores what it can, `explicit` only up to breakpoints, so nothing without any.
    ttl: keep the prompt at least that long after its last use.
    """

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class Prediction(Struct, frozen=True, kw_only=True, tag_field="type", tag="content"):
    """A speed hint: tried as drafts, never taken for an answer.

    content: what the answer will much resemble.
    """

    content: Content


TemplateOptions = Annotated[
    dict[
        Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")],
        Annotated[str, Meta(max_length=256)] | bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)],
    ],
    Meta(max_length=16),
]
StopSequence = Annotated[str, Meta(min_length=1, max_length=1000)]
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class AnaphoraOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that only this server has.

    splice: take replies that come back as text as the tokens that were generated.
    priority: how long what is computed stays: `low` goes first, `high` stays as with a time to live.
    explain: say in the reply what the cache had of the prompt, and why no more.
    """

    splice: bool = True
    priority: Literal["low", "normal", "high"] = "normal"
    explain: bool = False


class ChatCompletionRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions.

    messages: the conversation, oldest first. Rendering is canonical: what means the same becomes the same tokens.
    model: the name in `/v1/models`; any other is a 404.
    max_completion_tokens: most tokens of each choice; without it, up to the end of the context.
    max_tokens: the older name of `max_completion_tokens`.
    temperature: 0 is greedy; 1 without it. top_p: draw from the likeliest tokens of this total probability.
    top_k: draw from that many likeliest tokens; 0 and -1 are all. min_p: draw from tokens at least this share as likely
    as the likeliest.
    seed: the same seed and request give the same answer, whoever else is served; any 64-bit integer.
    stop: end the answer before the first of these; never in the answer.
    n: choices; the prompt is computed once for all. The server may allow fewer.
    presence_penalty: taken from the logit of each token that was said. frequency_penalty: taken once per time that it
    was said. logit_bias: token id to what is added to its logit.
    ignore_eos: go on where the model would end. cache_salt: shares no cached prefix with other salts; never widens
    sharing.
    stream: answer as server-sent events. stream_options: needs `stream`.
    prediction: what the answer will much resemble. anaphora: options that only this server has.
    metadata, store, user, safety_identifier, prompt_cache_key: taken, without effect.
    parallel_tool_calls: false for at most one call in a reply.
    prompt_cache_retention: the older word for `prompt_cache_options.ttl`: `24h` keeps the prompt a day.
    prompt_cache_options: what the cache may do with this request.
    reasoning_effort, chat_template_kwargs: variables for the model's chat template; those it does not read have no
    effect. verbosity: taken, without effect. service_tier: taken; the answer's is `default`.
    modalities: only text is. audio, moderation, web_search_options: refused by name.
    repetition_penalty: divides the logits of tokens that the prompt or the answer has.
    functions, function_call: OpenAI's legacy, refused by name: send `tools`.
    logprobs: say how likely each token was. top_logprobs: and of so many likeliest others; needs `logprobs`.
    response_format: what the answer must look like. tools: functions that the model may call.
    tool_choice: whether, or which, or which of them only.
    """

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
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    ignore_eos: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    tools: Tools | None = None
    tool_choice: ToolChoiceOption | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    anaphora: AnaphoraOptions | None = None

    # Taken, checked, without effect on the answer.
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: bool | None = None
    user: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    # Refused by name, wholly or for some values.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: list[Literal["text", "audio"]] | None = None
    moderation: Any = None
    prompt_cache_options: PromptCacheOptions | None = None
    web_search_options: Any = None


# -- reply --
# -----------


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    """Of a prompt's tokens.

    cached_tokens: found in the cache, in any tier. cache_write_tokens: computed now and stored. audio_tokens: none.
    """

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the tokens of all choices.

    reasoning_tokens: thought, not said. audio_tokens: none. accepted_prediction_tokens, rejected_prediction_tokens: of
    `prediction`, as far as it was tried.
    """

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a request.

    prompt_tokens: of the prompt, counted once. completion_tokens: of all choices. total_tokens: both.
    prompt_tokens_details: where they came from. completion_tokens_details: what they were.
    """

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
                reasoning_tokens=usage.reasoning_tokens,
                accepted_prediction_tokens=usage.accepted_prediction_tokens,
                rejected_prediction_tokens=usage.rejected_prediction_tokens,
            ),
        )


class Moved(Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """Something that the canonical order put elsewhere.

    from: where the request had it, e.g. `messages[3]`. to: where the prompt has it.
    """

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
    """The reply.

    role: always the assistant. content: its text; null where it made calls and said nothing else. refusal: always
    null. tool_calls: the calls it makes. reasoning_content: what a reasoning model thought before it.
    """

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallMade] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """One of `n` replies.

    index: which. message: the reply. finish_reason: `stop` where it ended by itself or at a stop sequence, `length` at
    a limit. logprobs: if they were asked for.
    """

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer.

    id: of this answer. object: always the same. created: seconds since the epoch. model: that answered.
    choices: by index. usage: tokens. service_tier: `default`, if the request named one.
    anaphora: what was done with the request.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class ChunkDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to a choice; texts are concatenated.

    role: in the choice's first chunk. content: the next piece of the text. reasoning_content: of the thoughts before
    it. tool_calls: pieces of calls.
    """

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """What a chunk says of one choice.

    index: which. delta: what it adds. finish_reason: in the choice's last chunk, else null. logprobs: of the tokens of
    this chunk, if they were asked for.
    """

    index: int
    delta: ChunkDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a streamed answer.

    id, created, model: the same in all chunks. object: always the same. choices: what this chunk adds; none in the
    chunk with the usage. usage: null but in the last chunk, if it was asked for. service_tier: `default`, if the
    request named one. anaphora: what was done with the request; in the first chunk.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class Model(Struct, frozen=True, kw_only=True):
    """A model.

    id: its name in requests. created: when it was loaded, in seconds since the epoch. object: always the same.
    owned_by: this server.
    """

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "anaphora"


class ModelList(Struct, frozen=True, kw_only=True):
    """data: the one model served here. object: always the same."""

    data: list[Model]
    object: Literal["list"] = "list"


CHAT_DECODER = msgspec.json.Decoder(ChatCompletionRequest)
ENCODER = msgspec.json.Encoder()
