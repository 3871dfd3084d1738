"""The wire of tools: definitions, choices and calls, in requests and in replies. `docs/tools.md` says what they do."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_TOOLS = 128
MAX_CALLS = 128

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
CallId = Annotated[str, Meta(max_length=256)]

# -- request --


class FunctionDefinition(Struct, frozen=True, kw_only=True):
    """A function that the model may call.

    name: letters, digits, `_` and `-`. description: when and how to use it. parameters: a JSON Schema of an object;
    absent: the function takes nothing. strict: arguments always match it.
    """

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """function: what may be called."""

    function: FunctionDefinition


class CustomTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """Declared to be refused by name."""


Tools = Annotated[list[ChatTool | CustomTool], Meta(max_length=MAX_TOOLS)]


class NamedFunction(Struct, frozen=True, kw_only=True):
    """name: of one of the tools."""

    name: FunctionName


class FunctionChoice(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """function: what the model must call, or may."""

    function: NamedFunction


class CustomChoice(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """Declared to be refused by name."""


class AllowedChoices(Struct, frozen=True, kw_only=True):
    """mode: whether one of them must be called. tools: by name."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice | CustomChoice], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Struct, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """allowed_tools: only these may be called. The prompt still has all, so that its cached prefix stays."""

    allowed_tools: AllowedChoices


ToolChoiceOption = Literal["none", "auto", "required"] | FunctionChoice | CustomChoice | AllowedToolsChoice


class CalledFunction(Struct, frozen=True, kw_only=True):
    """name: of the function. arguments: JSON as the model wrote it, which may not be valid."""

    name: FunctionName
    arguments: str


class ToolCallMade(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """id: what the answer to the call refers to. function: what is called."""

    id: CallId
    function: CalledFunction


class CustomCall(Struct, frozen=True, kw_only=True, tag_field="type", tag="custom"):
    """Declared to be refused by name."""


Calls = Annotated[list[ToolCallMade | CustomCall], Meta(max_length=MAX_CALLS)]

# -- reply --


class FunctionPiece(Struct, frozen=True, kw_only=True):
    """name: on a call's first piece only. arguments: the next piece of them."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class CallPiece(Struct, frozen=True, kw_only=True):
    """A piece of a call.

    index: which of the choice's calls. id, type: on its first piece only. function: what comes to it.
    """

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionPiece
