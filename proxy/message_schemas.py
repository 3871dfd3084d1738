"""The messages of a chat request, and the parts of their content. Those without fields are to be refused by name."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.tool_schemas import Calls


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
