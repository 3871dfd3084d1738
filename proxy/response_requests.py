"""What requests to /v1/responses and /v1/conversations may hold.

As in `schemas.py`: bounds that one field can state stand here, `None` is unset, unknown fields are ignored, and what
is known and not built is declared as `Any`, to be refused by name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.format_schemas import SchemaName
from proxy.generation_schemas import GenerationOptions
from proxy.schemas import AnaphoraOptions, Metadata
from proxy.tool_schemas import MAX_TOOLS, FunctionName


class ConversationReference(Struct, frozen=True, kw_only=True):
    """A conversation, by its id.

    id: `conv_...`.
    """

    id: str


class ResponseCacheOptions(Struct, frozen=True, kw_only=True):
    """What the cache may do with this request.

    mode: `explicit` reads and writes at breakpoints only. ttl: so long the prompt is kept after its last use, at
    least. prewarm: compute the prompt and say nothing. comparison_response_id: ask for `prompt_cache_diagnostics`,
    against the prompt of this stored response.
    """

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: bool | None = None
    comparison_response_id: str | None = None


class Reasoning(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of a reasoning model.

    effort: the chat template may read it. summary, generate_summary, context, mode: repeated, without effect.
    """

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class TextFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Struct, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """A JSON object."""


class JsonSchemaFormat(
    Struct, frozen=True, kw_only=True, tag_field="type", tag="json_schema", rename={"schema_": "schema"}
):
    """JSON that matches a schema.

    name: letters, digits, `_` and `-`. schema: a JSON Schema. description: what it is for. strict: it is enforced in
    any case.
    """

    name: SchemaName
    schema_: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True, kw_only=True):
    """What the text of the answer looks like.

    format: any text, a JSON object, or what a schema allows. verbosity: taken and repeated, without effect.
    """

    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class FunctionTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function that the model may call.

    name: letters, digits, `_` and `-`. description: what it does. parameters: a JSON Schema of an object; absent: it
    takes nothing. strict: arguments always match it; false where it is not said.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function, by its name.

    name: of one of the tools.
    """

    name: str


class AllowedTools(Struct, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Only these tools may be called; the prompt still has all, so that its cached prefix stays.

    mode: whether one must be. tools: by name.
    """

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_TOOLS)]


class ResponseStreamOptions(Struct, frozen=True, kw_only=True):
    """Options of a stream.

    include_obfuscation: taken, without effect.
    """

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


class ResponseContext(GenerationOptions, frozen=True, kw_only=True):
    """What a prompt is made of, in the body of POST /v1/responses/input_tokens; the options of a generation are checked
    there, without effect.

    model: the name in `/v1/models`; any other is a 404. input: a string, or items: messages, function calls and
    their outputs, reasoning, references to stored items. instructions: a system message before everything; not
    carried over to a next response. previous_response_id: the stored response that this one continues.
    conversation: or the conversation, which also gets the input and the answer. parallel_tool_calls: false for at
    most one call in a reply. reasoning: its effort may be read by the template. text: what the text of the answer looks
    like. tools: functions that the model may call; hosted tools are refused by name. tool_choice: whether, or
    which: `none`, `auto`, `required`, a function, or allowed tools. truncation: `auto` leaves out the oldest
    messages until the prompt fits; `disabled` refuses it.
    """

    model: Annotated[str, Meta(min_length=1)] | None = None
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationReference | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tool_choice: Any = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationReference) else self.conversation


class ResponseRequest(ResponseContext, frozen=True, kw_only=True):
    """Body of POST /v1/responses.

    include: `message.output_text.logprobs` says how likely each token was; the others have no effect.
    max_output_tokens: most tokens of the reply; without it, up to the end of the context. metadata: kept with the
    response. prompt_cache_options: what the cache may do with this request. store: keep it, to be retrieved and
    continued; true without it. stream_options: needs `stream`. top_logprobs: of so many likeliest tokens.
    anaphora: options that only this server has.
    prompt_cache_key: requests that belong together; a group that comes back is kept as a session is, under pressure.
    safety_identifier, user: taken and repeated, without effect. service_tier: taken; the answer's
    is `default`.
    access_programs, background_options, context_management, image, max_tool_calls, moderation, prompt: refused by
    name. background: only false is taken.
    """

    model: Annotated[str, Meta(min_length=1)]
    include: list[Includable] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    metadata: Metadata | None = None
    prompt_cache_options: ResponseCacheOptions | None = None
    store: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    anaphora: AnaphoraOptions | None = None

    # Taken, checked, without effect on the answer.
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None

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
    """Body of POST /v1/conversations.

    items: what it begins with. metadata: kept with it.
    """

    items: list[dict[str, Any]] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/conversations/{id}.

    metadata: in place of what it had.
    """

    metadata: Metadata | None


class ItemsRequest(Struct, frozen=True, kw_only=True):
    """Body of POST /v1/conversations/{id}/items.

    items: to be added at the end.
    """

    items: Annotated[list[dict[str, Any]], Meta(min_length=1)]


RESPONSE_DECODER = msgspec.json.Decoder(ResponseRequest)
CONTEXT_DECODER = msgspec.json.Decoder(ResponseContext)
CONVERSATION_DECODER = msgspec.json.Decoder(ConversationRequest)
CONVERSATION_UPDATE_DECODER = msgspec.json.Decoder(ConversationUpdate)
ITEMS_REQUEST_DECODER = msgspec.json.Decoder(ItemsRequest)
