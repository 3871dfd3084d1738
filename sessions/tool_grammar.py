"""Tool grammar: what a reply must match so that it makes the calls that it may make, and no others. Pure.

    required, one named                  start: thoughts? calls
    auto, a format is asked              start: thoughts? (body | calls)
    auto, strict tools, or only some     start: thoughts? (PLAIN | text that opens calls)
    none                                 start: thoughts? (body | PLAIN)

PLAIN is text in which `ReplyParser` finds no call, so none can be written but by the rules of calls. A marker that is
a token of its own stands as that token. One that is text ends the text before it as soon as it is there (`[lazy]`).
The dialect is llguidance's Lark.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sessions.dialect import THINK_CLOSE, THINK_OPEN, TOOL_CALL_END, Dialect
from sessions.grammar_compiler import embedded_json
from sessions.types import ChatRequest, Grammar, Tool

_ANY: Final = r"(.|\n)*"
_LIST: Final = ' (", " one)*'
_SPACE: Final = r"SPACE: /[ \n]*/"
_NOTHING: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_ANY_OBJECT: Final = {"type": "object"}


def reply_grammar(
    dialect: Dialect, marker_ids: Mapping[str, int], request: ChatRequest, *, is_thinking: bool
) -> Grammar | None:
    """None for any text. is_thinking: the prompt ends inside thoughts."""
    asked = request.params.grammar
    if asked is not None and asked.kind != "json_schema":
        return asked
    writer = _Writer(dialect, marker_ids, request)
    match request.tool_choice.mode if request.tools else "absent":
        case "required":
            start = writer.calls()
        case "auto" if asked is not None:
            start = f"({writer.body(asked)} | {writer.calls()})"
        case "auto" if writer.is_bound:
            start = writer.text_or_calls()
        case "none" if asked is None:
            start = writer.plain()
        case "none" | "absent" if asked is not None and dialect.thinks:
            start = writer.body(asked)
        case _:
            return asked
    if dialect.thinks:
        start = f"{writer.thoughts(is_thinking=is_thinking)} {start}"
    param = asked.param if asked is not None and "calls" not in start else "tools"
    rules = [f"start: {start}", *dict.fromkeys(writer.rules)]
    return Grammar("lark", "\n".join(rules), param, parts=tuple(writer.schemas))


def demands_grammar(request: ChatRequest) -> bool:
    """Or can it do without: what nobody may call is then text to the parser, though it looks like a call?"""
    is_strict = request.tool_choice.mode == "auto" and any(tool.strict for tool in request.tools)
    return request.params.grammar is not None or request.tool_choice.mode == "required" or is_strict


class _Writer:
    """Writes down what a reply may consist of; each part adds the rules that it needs.

    rules: so far. schemas: those that they embed. is_bound: may the model not call whatever it likes, as it likes?
    """

    def __init__(self, dialect: Dialect, marker_ids: Mapping[str, int], request: ChatRequest) -> None:
        choice = request.tool_choice
        self._dialect = dialect
        self._marker_ids = marker_ids
        self._names = [tool.name for tool in request.tools]
        self._allowed = [tool for tool in request.tools if choice.names is None or tool.name in choice.names]
        self._is_required = choice.mode == "required"
        self._is_parallel = choice.is_parallel
        self._has_text = False
        self.is_bound = any(tool.strict for tool in self._allowed) or len(self._allowed) < len(request.tools)
        self.rules: list[str] = []
        self.schemas: list[Grammar] = []

    def body(self, asked: Grammar) -> str:
        self.rules.append(f"body: {self._embedded(asked)}")
        return "body"

    def calls(self) -> str:
        more = self._frame()
        first = "one" if self._dialect.call_format == "llama3" else f"{self._marker(self._dialect.call_start)} frame"
        self.rules.append(f"calls: {first}{more}")
        return "calls"

    def plain(self) -> str:
        self._has_text = True
        self.rules += [f"PLAIN: /{_ANY}/ & ~CALLING{self._no_thoughts()}", f"CALLING: /{self._calling()}/"]
        return "PLAIN"

    def text_or_calls(self) -> str:
        start, marker = self.plain(), self._dialect.call_start
        if self._dialect.call_format == "llama3":
            return f"({start} | {self._bare_calls()})"
        if marker in self._marker_ids:
            return f"{start} {self.calls()}?"
        self.rules += ["opening[lazy]: OPENING", f"OPENING: /{_ANY}{_regex(marker)}/{self._no_thoughts()}"]
        return f"({start} | opening frame{self._frame()})"

    def thoughts(self, *, is_thinking: bool) -> str:
        """Before all else. Text has the space after them to itself."""
        after = "" if self._has_text else " SPACE"
        self.rules += [] if self._has_text else [_SPACE]
        if THINK_CLOSE in self._marker_ids:
            closed = f"THOUGHT {self._marker(THINK_CLOSE)}{after}"
            self.rules.append(rf"THOUGHT: /{_ANY}/ & ~CLOSED")
            self.rules.append(f"CLOSED: /{_ANY}{_regex(THINK_CLOSE)}{_ANY}/")
        else:
            closed = f"thought{after}"
            self.rules.append(f"thought[lazy]: /{_ANY}{_regex(THINK_CLOSE)}/")
        if is_thinking:
            return closed
        if THINK_OPEN in self._marker_ids or not self._has_text:
            return f"({self._marker(THINK_OPEN)} {closed})?"
        self.rules.append(rf"thoughts[lazy]: /\s*{_regex(THINK_OPEN)}{_ANY}{_regex(THINK_CLOSE)}/")
        return f"thoughts{after}?"

    # -- what these consist of --

    def _frame(self) -> str:
        """Adds `frame`, all of a call but what opens it. Returns what may follow the first call."""
        key = _key(self._dialect)
        for number, tool in enumerate(self._allowed):
            # Cut as JSON is: the lexer is greedy, and Llama's call may stand where an asked format's object may.
            head = " ".join(map(json.dumps, ("{", '"name"', ": ", json.dumps(tool.name), ", ", f'"{key}"', ": ")))
            arguments = _arguments(tool, is_required=self._is_required)
            self.rules.append(f'call_{number}: {head} arguments_{number} "}}"')
            self.rules.append(f"arguments_{number}: {self._embedded(arguments)}")
        self.rules.append("one: " + _any_of("call", self._allowed))
        match self._dialect.call_format:
            case "hermes":
                self.rules.append(f'frame: "\\n" one "\\n" {self._marker(TOOL_CALL_END)}')
                more = f' ("\\n" {self._marker(self._dialect.call_start)} frame)*'
            case "mistral":
                self.rules.append(f'frame: " "? "[" one{self._more(_LIST)} "]"')
                more = ""
            case "llama3":
                more = ' ("; " one)*'
        return self._more(more)

    def _bare_calls(self) -> str:
        """Llama's: what opens the first is a lexeme of its own, as long as what it might be else is not over."""
        more, marker = self._frame(), self._dialect.call_start
        is_token = marker in self._marker_ids
        before = r"\s*" if is_token else rf"\s*({_regex(marker)})?\s*"
        for number, tool in enumerate(self._allowed):
            kind = r'("type"\s*:\s*"function"\s*,\s*)?'
            head = rf'\{{\s*{kind}"name"\s*:\s*"{_regex(tool.name)}"\s*,\s*"{_key(self._dialect)}"\s*:'
            self.rules.append(f"head_{number}[lazy]: /{before}{head}/")
            self.rules.append(f'opened_{number}: head_{number} " "? arguments_{number} "}}"')
        self.rules.append("opened: " + _any_of("opened", self._allowed))
        return f"{self._marker(marker) + '? ' if is_token else ''}opened{more}"

    def _calling(self) -> str:
        """Text, from its beginning, in which a call of one of the tools may be found."""
        marker = _regex(self._dialect.call_start)
        if self._dialect.call_format != "llama3":
            return f"{_ANY}{marker}{_ANY}"
        names = "|".join(map(_regex, self._names))
        return rf'\s*({marker})?\s*\{{{_ANY}"name"\s*:\s*"({names})"{_ANY}'

    def _no_thoughts(self) -> str:
        if not self._dialect.thinks:
            return ""
        self.rules.append(rf"THINKING: /\s*{_regex(THINK_OPEN)}{_ANY}/")
        return " & ~THINKING"

    def _embedded(self, schema: Grammar) -> str:
        self.schemas.append(schema)
        return embedded_json(schema)

    def _marker(self, text: str) -> str:
        """Its token, or its text."""
        return f"<[{self._marker_ids[text]}]>" if text in self._marker_ids else json.dumps(text)

    def _more(self, rule: str) -> str:
        return rule if self._is_parallel else ""


def _arguments(tool: Tool, *, is_required: bool) -> Grammar:
    """An object, whatever else the schema says. It is obeyed if the tool is strict; of one that is not and must be
    called, as far as it can be; of others the model may depart from it."""
    if tool.parameters is None:
        schema: dict[str, Any] = _NOTHING
    elif tool.strict or is_required:
        schema = tool.parameters if "type" in tool.parameters else {**tool.parameters, "type": "object"}
    else:
        schema = _ANY_OBJECT
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False), tool.param, is_lenient=not tool.strict)


def _key(dialect: Dialect) -> str:
    return "parameters" if dialect.call_format == "llama3" else "arguments"


def _any_of(rule: str, tools: Sequence[Tool]) -> str:
    return " | ".join(f"{rule}_{number}" for number in range(len(tools)))


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
