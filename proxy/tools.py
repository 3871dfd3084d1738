"""The wire's tools, choices and calls into the values of `sessions`, and back. Pure.

What is known and not built (custom tools) is refused by name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final, Protocol

from msgspec import UNSET

from proxy.refusals import invalid, unsupported
from proxy.tool_schemas import (
    AllowedToolsChoice,
    CalledFunction,
    CallPiece,
    Calls,
    CustomCall,
    CustomChoice,
    CustomTool,
    FunctionChoice,
    FunctionPiece,
    ToolCallMade,
    ToolChoiceOption,
    Tools,
)
from sessions.reports import ToolCallPiece
from sessions.types import Tool, ToolCall, ToolChoice

_ONLY: Final = "only 'function' is"
_RESERVED: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class Named(Protocol):
    @property
    def name(self) -> str: ...


TemplateValue = str | bool | int


def tools_of(wire: Tools | None) -> tuple[Tool, ...]:
    """Raises InvalidRequest for what is no function, for two of one name, and for arguments that are no object."""
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(wire or ()):
        if isinstance(tool, CustomTool):
            raise unsupported(f"tools[{index}].type", _ONLY)
        function = tool.function
        if function.name in tools:
            raise invalid(f"tools[{index}].function.name", f"another tool is called '{function.name}' too")
        where = f"tools[{index}].function.parameters"
        check_parameters(function.parameters, where)
        tools[function.name] = Tool(
            function.name, function.description, function.parameters, strict=bool(function.strict), param=where
        )
    return tuple(tools.values())


def check_parameters(parameters: dict[str, Any] | None, param: str) -> None:
    """Raises InvalidRequest where they are no object's."""
    if parameters is not None and parameters.get("type", "object") != "object":
        raise invalid(param, "its type must be 'object'")


def tool_choice_of(
    wire: ToolChoiceOption | None, tools: Sequence[Tool], parallel_tool_calls: bool | None
) -> ToolChoice:
    """Raises InvalidRequest for a choice that the tools do not leave."""
    is_parallel = parallel_tool_calls is not False
    match wire:
        case CustomChoice():
            raise unsupported("tool_choice.type", _ONLY)
        case FunctionChoice():
            names = known_names([wire.function.name], tools, "tool_choice.function.name")
            return ToolChoice("required", names, is_parallel=False)
        case AllowedToolsChoice():
            for index, allowed in enumerate(wire.allowed_tools.tools):
                if isinstance(allowed, CustomChoice):
                    raise unsupported(f"tool_choice.allowed_tools.tools[{index}].type", _ONLY)
            wanted = [tool.function.name for tool in wire.allowed_tools.tools if isinstance(tool, FunctionChoice)]
            names = known_names(wanted, tools, "tool_choice.allowed_tools")
            return ToolChoice(wire.allowed_tools.mode, names, is_parallel)
        case "required":
            if not tools:
                raise invalid("tool_choice", "'required' needs 'tools'")
            return ToolChoice("required", None, is_parallel)
        case mode:
            return ToolChoice(mode or "auto", None, is_parallel) if tools else ToolChoice()


def calls_of(wire: Calls | None, where: str) -> tuple[ToolCall, ...]:
    """Calls that come back with an assistant's message. Raises InvalidRequest for custom ones."""
    calls = []
    for index, call in enumerate(wire or ()):
        if isinstance(call, CustomCall):
            raise unsupported(f"{where}.tool_calls[{index}].type", _ONLY)
        calls.append(ToolCall(call.id, call.function.name, call.function.arguments))
    return tuple(calls)


def template_options_of(
    wire: dict[str, TemplateValue] | None, reasoning_effort: str | None
) -> tuple[tuple[str, TemplateValue], ...]:
    """Raises InvalidRequest for variables that are not the client's to set."""
    options: dict[str, Any] = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
    options |= wire or {}
    taken = _RESERVED & options.keys()
    if taken:
        raise invalid("chat_template_kwargs", f"'{min(taken)}' is not yours to set")
    return tuple(sorted(options.items()))


def call_pieces(pieces: Iterable[ToolCallPiece]) -> list[CallPiece]:
    """As one delta of a stream has them: an entry for each call, since clients take the entries of their first delta
    as they stand."""
    merged = [_merged(list(group)) for _, group in groupby(pieces, key=lambda piece: piece.index)]
    return [
        CallPiece(
            index=piece.index,
            id=UNSET if piece.id is None else piece.id,
            type=UNSET if piece.id is None else "function",
            function=FunctionPiece(name=UNSET if piece.name is None else piece.name, arguments=piece.arguments),
        )
        for piece in merged
    ]


def _merged(pieces: Sequence[ToolCallPiece]) -> ToolCallPiece:
    """Pieces of one call, in order: only the first says which."""
    return replace(pieces[0], arguments="".join(piece.arguments for piece in pieces))


def whole_calls(pieces: Iterable[ToolCallPiece]) -> list[ToolCallMade]:
    """The calls that all the pieces of one choice make."""
    ids: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.index == len(ids):
            ids.append(piece.id or "")
            names.append(piece.name or "")
            arguments.append([])
        arguments[piece.index].append(piece.arguments)
    return [
        ToolCallMade(id=call_id, function=CalledFunction(name=name, arguments="".join(parts)))
        for call_id, name, parts in zip(ids, names, arguments, strict=True)
    ]


def known_names(names: Sequence[str], tools: Iterable[Named], param: str) -> tuple[str, ...]:
    """The names, each once, in order. Raises InvalidRequest for one that no tool has."""
    known = {tool.name for tool in tools}
    for name in names:
        if name not in known:
            raise invalid(param, f"no tool is called '{name[:64]}'")
    return tuple(sorted(set(names)))
