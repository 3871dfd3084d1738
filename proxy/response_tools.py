"""Tools and choices as /v1/responses has them: flat, not under `function`. Pure.

What OpenAI hosts, and what is known and not built, is refused by name.
"""

from collections.abc import Sequence
from typing import Any

from proxy.body import converted
from proxy.refusals import invalid, unsupported
from proxy.response_requests import AllowedTools, FunctionTool, NamedFunction, ResponseContext
from proxy.tools import check_parameters, known_names
from sessions.types import Tool, ToolChoice


def tools_of(written: Sequence[dict[str, Any]] | None) -> list[FunctionTool]:
    """Raises InvalidRequest for a hosted tool, and for two of one name."""
    tools: dict[str, FunctionTool] = {}
    for index, tool in enumerate(written or ()):
        where = f"tools[{index}]"
        if tool.get("type") != "function":
            raise unsupported(f"{where}.type", "only 'function' is")
        read = converted(tool, FunctionTool, where)
        if read.name in tools:
            raise invalid(f"{where}.name", f"another tool is called '{read.name}' too")
        check_parameters(read.parameters, f"{where}.parameters")
        tools[read.name] = FunctionTool(
            name=read.name, description=read.description, parameters=read.parameters, strict=bool(read.strict)
        )
    return list(tools.values())


def sessions_tools(tools: Sequence[FunctionTool]) -> tuple[Tool, ...]:
    return tuple(
        Tool(tool.name, tool.description, tool.parameters, strict=bool(tool.strict), param=f"tools[{index}].parameters")
        for index, tool in enumerate(tools)
    )


def tool_choice_of(wire: ResponseContext, tools: Sequence[FunctionTool]) -> ToolChoice:
    """Raises InvalidRequest for a choice that the tools do not leave."""
    is_parallel = wire.parallel_tool_calls is not False
    match wire.tool_choice:
        case None | "auto" | "none" as mode:
            return ToolChoice(mode or "auto", None, is_parallel) if tools else ToolChoice()
        case "required":
            if not tools:
                raise invalid("tool_choice", "'required' needs 'tools'")
            return ToolChoice("required", None, is_parallel)
        case {"type": "function"}:
            name = converted(wire.tool_choice, NamedFunction, "tool_choice").name
            return ToolChoice("required", known_names([name], tools, "tool_choice.name"), is_parallel=False)
        case {"type": "allowed_tools"}:
            allowed = converted(wire.tool_choice, AllowedTools, "tool_choice")
            names = [_named(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(allowed.tools)]
            return ToolChoice(allowed.mode, known_names(names, tools, "tool_choice.tools"), is_parallel)
        case {"type": str()}:
            raise unsupported("tool_choice.type", "'function' and 'allowed_tools' are")
        case _:
            raise invalid("tool_choice", "'none', 'auto', 'required' or an object with a type is expected")


def _named(tool: dict[str, Any], where: str) -> str:
    if tool.get("type") != "function":
        raise unsupported(f"{where}.type", "only 'function' is")
    return converted(tool, NamedFunction, where).name
