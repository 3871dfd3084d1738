"""The OpenAI wire as msgspec Structs: what a chat request may hold. Its messages stand in `message_schemas.py`, what
all that generates may be asked in `generation_schemas.py`, the answers in `answer_schemas.py`.

Bounds that a single field can state stand here; what needs two fields, settings or the model is in
`translate.py`. `None` is "unset" for every optional parameter, as it is for OpenAI. Unknown fields are
ignored; parameters that are known and not built are declared as `Any`, so that `translate.py` can refuse them
by name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.format_schemas import ResponseFormat
from proxy.generation_schemas import ChoiceOptions
from proxy.message_schemas import ChatMessage, Content
from proxy.tool_schemas import ToolChoiceOption, Tools


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


class ChatCompletionRequest(ChoiceOptions, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions.

    messages: the conversation, oldest first. Rendering is canonical: what means the same becomes the same tokens.
    model: the name in `/v1/models`; any other is a 404.
    max_completion_tokens: most tokens of each choice; without it, up to the end of the context.
    max_tokens: the older name of `max_completion_tokens`.
    logprobs: say how likely each token was. top_logprobs: and of so many likeliest others; needs `logprobs`.
    tools: functions that the model may call. tool_choice: whether, or which, or which of them only.
    parallel_tool_calls: false for at most one call in a reply.
    response_format: what the answer must look like.
    reasoning_effort, chat_template_kwargs: variables for the model's chat template; those it does not read have no
    effect.
    prediction: what the answer will much resemble. anaphora: options that only this server has.
    metadata, store, safety_identifier, verbosity: taken, without effect. service_tier: taken; the answer's is
    `default`.
    modalities: only text is. audio, moderation, web_search_options: refused by name.
    functions, function_call: OpenAI's legacy, refused by name: send `tools`.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]

    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

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
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    store: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    # Refused by name, wholly or for some values.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: list[Literal["text", "audio"]] | None = None
    moderation: Any = None
    web_search_options: Any = None


CHAT_DECODER = msgspec.json.Decoder(ChatCompletionRequest)
ENCODER = msgspec.json.Encoder()
