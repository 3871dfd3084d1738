"""Tool grammar: what a reply must match so that the calls it makes are well formed. Pure.

    required, one named       start: thoughts? calls
    auto, a format is asked   start: thoughts? (body | calls)
    auto, strict tools        start: thoughts? TEXT calls?      where a call begins with a token that no text can be
    none                      start: thoughts? body

Arguments match each function's schema. The dialect is llguidance's Lark. A marker that is a token of its own stands as
that token; a text cannot be one, so where text ends is never a guess.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sessions.dialect import THINK_CLOSE, THINK_OPEN, TOOL_CALL_END, Dialect
from sessions.grammars import embedded_json
from sessions.types import ChatRequest, Grammar, Tool

_TEXT: Final = "TEXT: /(.|\\n)*/"
_SPACE: Final = "SPACE: /[ \\n]*/"
_NOTHING: Final = {"type": "object", "properties": {}, "additionalProperties": False}


def reply_grammar(
    dialect: Dialect, marker_ids: Mapping[str, int], request: ChatRequest, *, is_thinking: bool
) -> Grammar | None:
    """None for any text. is_thinking: the prompt ends inside thoughts."""
    asked, choice = request.params.grammar, request.tool_choice
    tools = [tool for tool in request.tools if choice.names is None or tool.name in choice.names]
    markers = _Markers(marker_ids)
    calls = _calls(dialect, markers, tools, is_parallel=choice.is_parallel) if choice.mode != "none" and tools else []
    if calls and choice.mode == "required":
        start, rules = "calls", calls
    elif calls and asked is not None and asked.kind == "json_schema":
        start, rules = "(body | calls)", [*calls, f"body: {embedded_json(json.loads(asked.source))}"]
    elif calls and asked is None and any(tool.strict for tool in tools) and dialect.call_start in marker_ids:
        start, rules = "TEXT calls?", [*calls, _TEXT]
    elif asked is not None and asked.kind == "json_schema" and dialect.thinks:
        start, rules = "body", [f"body: {embedded_json(json.loads(asked.source))}"]
    else:
        return asked
    if dialect.thinks:
        start = f"thoughts {start}" if is_thinking else f"({markers(THINK_OPEN)} thoughts)? {start}"
        rules = [*rules, *_thoughts(markers)]
    param = asked.param if asked is not None and not calls else "tools"
    return Grammar("lark", "\n".join([f"start: {start}", *dict.fromkeys(rules)]), param)


class _Markers:
    """A marker as a grammar says it: its token, or its text."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids

    def __call__(self, text: str) -> str:
        return f"<[{self.ids[text]}]>" if text in self.ids else _quoted(text)


def _calls(dialect: Dialect, markers: _Markers, tools: Sequence[Tool], *, is_parallel: bool) -> list[str]:
    key = "parameters" if dialect.call_format == "llama3" else "arguments"
    # Cut as JSON is: the lexer is greedy, and Llama's call may stand where an asked format's object may.
    parts = [("{", '"name"', ": ", json.dumps(tool.name), ", ", f'"{key}"', ": ") for tool in tools]
    heads = [" ".join(map(_quoted, part)) for part in parts]
    rules = [f'call_{number}: {head} arguments_{number} "}}"' for number, head in enumerate(heads)]
    rules += [f"arguments_{number}: {embedded_json(_schema(tool))}" for number, tool in enumerate(tools)]
    one = " | ".join(f"call_{number}" for number in range(len(tools)))
    rules.append(f"one: {one}")
    match dialect.call_format:
        case "hermes":
            framed = f'{markers(dialect.call_start)} "\\n" one "\\n" {markers(TOOL_CALL_END)}'
            more = ' ("\\n" framed)*'
            return [f"calls: framed{more if is_parallel else ''}", f"framed: {framed}", *rules]
        case "mistral":
            more = ' (", " one)*'
            return [f'calls: {markers(dialect.call_start)} " "? "[" one{more if is_parallel else ""} "]"', *rules]
        case "llama3":
            more = ' ("; " one)*'
            return [f"calls: one{more if is_parallel else ''}", *rules]


def _thoughts(markers: _Markers) -> list[str]:
    if THINK_CLOSE in markers.ids:
        return [f"thoughts: TEXT {markers(THINK_CLOSE)} SPACE", _TEXT, _SPACE]
    return ["thoughts: thought SPACE", "thought[lazy]: /(.|\\n)*<\\/think>/", _SPACE]


def _schema(tool: Tool) -> dict[str, Any]:
    """Arguments are an object, whatever else the schema says."""
    if tool.parameters is None:
        return _NOTHING
    return tool.parameters if "type" in tool.parameters else {**tool.parameters, "type": "object"}


def _quoted(text: str) -> str:
    return json.dumps(text)
