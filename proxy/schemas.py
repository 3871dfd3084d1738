"""The OpenAI wire as msgspec Structs: what a chat request may hold. Its messages stand in `message_schemas.py`, the
answers in `answer_schemas.py`.

Bounds that a single field can state stand here; what needs two fields, settings or the model is in
`translate.py`. `None` is "unset" for every optional parameter, as it is for OpenAI. Unknown fields are
ignored; parameters that are known and not built are declared as `Any`, so that `translate.py` can refuse them
by name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.format_schemas import ResponseFormat
from proxy.message_schemas import ChatMessage, Content
from proxy.tool_schemas import ToolChoiceOption, Tools


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


CHAT_DECODER = msgspec.json.Decoder(ChatCompletionRequest)
ENCODER = msgspec.json.Encoder()
