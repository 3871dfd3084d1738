"""Dialect: how a model's chat template writes tools, calls, results and thoughts; measured on the template. Pure.

A template is run on a few tiny conversations, and what it made of them says what it can. What it cannot is written
here, in the style of Hermes, into contents that any template takes (`docs/tools.md`):

    definitions     at the end of the leading system message, one JSON a line between <tools> and </tools>; before the
                    first user message, where the template takes no system message
    a call          <tool_call>\\n{"name": ..., "arguments": ...}\\n</tool_call>, after the content
    a result        <tool_response>\\n...\\n</tool_response>, as the user's; several are one message where users may
                    not speak twice in a row

Some templates write definitions and the system message beside the last user message, so that each turn moves them and
nothing that was computed can be used again. There they stay where they were in the first turn: at the first one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sessions.conversation import Call, Turn

CallFormat = Literal["hermes", "llama3", "mistral"]

_BEFORE: Final[dict[CallFormat, str]] = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}
THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"
TOOL_CALL_END: Final = "</tool_call>"

_DEFINITIONS: Final = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{definitions}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

Apply = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a template does by itself, and how its model calls and thinks.

    has_tools, has_results: the template writes definitions; what a tool answered. arguments: of calls, as it wants
    them: an object, their text, or `none` if it writes no calls. thinks: replies may begin with thoughts. has_system:
    it takes a system message. alternates: it takes users and replies only in turns. anchors: it would move what leads
    a conversation along with the last user message.
    """

    has_tools: bool = True
    has_results: bool = True
    arguments: Literal["object", "text", "none"] = "none"
    call_format: CallFormat = "hermes"
    thinks: bool = False
    has_system: bool = True
    alternates: bool = False
    anchors: bool = False

    @property
    def call_start(self) -> str:
        """What opens a call; before Llama's it may be missing."""
        return _BEFORE[self.call_format]

    @property
    def markers(self) -> frozenset[str]:
        """Texts that a reply may hold as tokens of their own, and that say something."""
        of_calls = {self.call_start, *((TOOL_CALL_END,) if self.call_format == "hermes" else ())}
        return frozenset(of_calls | ({THINK_OPEN, THINK_CLOSE} if self.thinks else set()))

    def apply(
        self,
        template: Apply,
        turns: Sequence[Turn],
        schemas: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        **options: Any,
    ) -> str:
        """The conversation as `template` writes it. Raises what that raises.

        Anchored, it is put together of three: what leads it with the first question, what follows that question,
        and the question alone, to see where the two meet.
        """

        def write(turns: Sequence[Turn], schemas: Sequence[Mapping[str, Any]] | None, is_open: bool) -> str:
            return template(self.messages(turns, schemas), schemas if self.has_tools else None, is_open, **options)

        asked = next((at for at, turn in enumerate(turns) if turn.role == "user"), len(turns)) + 1
        leads = bool(schemas) or asked > 1
        if self.anchors and leads and asked < len(turns):
            question = write(turns[asked - 1 : asked], None, False)
            rest = write(turns[asked - 1 :], None, add_generation_prompt)
            if rest.startswith(question):
                return write(turns[:asked], schemas, False) + rest[len(question) :]
        return write(turns, schemas, add_generation_prompt)

    def messages(self, turns: Sequence[Turn], schemas: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
        """What the template gets, definitions included where it would leave them out."""
        messages: list[dict[str, Any]] = []
        for turn in turns:
            message = self._message(turn)
            before = messages[-1] if messages else None
            is_result = turn.role == "tool" and message["role"] == "user"
            if self.alternates and is_result and before is not None and before["role"] == "user":
                before["content"] += "\n" + message["content"]
            else:
                messages.append(message)
        if schemas and not self.has_tools:
            lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
            self._define(messages, _DEFINITIONS.format(definitions=lines))
        return messages

    def _define(self, messages: list[dict[str, Any]], definitions: str) -> None:
        first = messages[0] if messages else None
        if first is not None and first["role"] == "system":
            first["content"] = f"{first['content']}\n\n{definitions}" if first["content"] else definitions
        elif first is not None and first["role"] == "user" and not self.has_system:
            first["content"] = f"{definitions}\n\n{first['content']}"
        else:
            messages.insert(0, {"role": "system", "content": definitions})

    def _message(self, turn: Turn) -> dict[str, Any]:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.role == "tool" and not self.has_results:
            return {"role": "user", "content": f"<tool_response>\n{turn.content}\n</tool_response>"}
        if turn.tool_call_id is not None:
            message["tool_call_id"] = turn.tool_call_id
        if turn.name is not None:
            message["name"] = turn.name
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.tool_calls and self.arguments == "none":
            message["content"] = "\n".join([*([turn.content] if turn.content else []), *map(_hermes, turn.tool_calls)])
        elif turn.tool_calls:
            message["tool_calls"] = [self._call(call) for call in turn.tool_calls]
        return message

    def _call(self, call: Call) -> dict[str, Any]:
        arguments = call.arguments if self.arguments == "text" else _loaded(call.arguments)
        return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": arguments}}


_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probes",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}},
    },
}
_ARGUMENTS: Final = {"probe_key": "probe value"}
_RESULT: Final = "probe result"
_USER: Final = {"role": "user", "content": "probe question"}
_SYSTEM: Final = Turn("system", "probe system")


def measure(apply: Apply, source: str, added_tokens: frozenset[str]) -> Dialect:
    """apply: the template, which raises what it likes. source: its text. added_tokens: the tokenizer's."""
    has_tools = "probe_tool" in _tried(apply, [_USER], [_TOOL])
    arguments = _arguments_form(apply)
    call_format = None if arguments == "none" else _call_format(_called(apply, arguments))
    if arguments != "none" and call_format is None:
        has_tools, arguments = False, "none"
    result = [
        *_calling(arguments),
        {"role": "tool", "name": "probe_tool", "tool_call_id": "call00000", "content": _RESULT},
    ]
    dialect = Dialect(
        has_tools=has_tools,
        has_results=has_tools and _RESULT in _tried(apply, result, None),
        arguments=arguments,
        call_format=call_format or "hermes",
        thinks=THINK_CLOSE in source or {THINK_OPEN, THINK_CLOSE} <= added_tokens,
        has_system=_SYSTEM.content in _tried(apply, [{"role": "system", "content": _SYSTEM.content}, _USER], None),
        alternates=not _tried(apply, [_USER, _USER], None),
    )
    anchored = replace(dialect, anchors=True)
    return anchored if _moves_what_leads(dialect, apply) and not _moves_what_leads(anchored, apply) else dialect


def _moves_what_leads(dialect: Dialect, apply: Apply) -> bool:
    """Does a second question change what was written before the first reply?"""
    asked, said = Turn("user", "probe question"), Turn("assistant", "probe reply")
    for leading in ((), (_SYSTEM,)) if dialect.has_system else ((),):
        for schemas in (None, [_TOOL]):
            once = _attempt(dialect.apply, apply, (*leading, asked), schemas, False)
            twice = _attempt(dialect.apply, apply, (*leading, asked, said, asked), schemas, False)
            if once and twice and not twice.startswith(once):
                return True
    return False


def _arguments_form(apply: Apply) -> Literal["object", "text", "none"]:
    """Their text, if it is written as it is; else an object, if that is."""
    if json.dumps(_ARGUMENTS) in _called(apply, "text"):
        return "text"
    written = _called(apply, "object")
    return "object" if all(json.dumps(part) in written for pair in _ARGUMENTS.items() for part in pair) else "none"


def _calling(form: Literal["object", "text", "none"]) -> list[dict[str, Any]]:
    if form == "none":
        return [_USER, {"role": "assistant", "content": "probe"}]
    return [_USER, Dialect(arguments=form)._message(Turn("assistant", "", tool_calls=(_PROBE_CALL,)))]


_PROBE_CALL: Final = Call("call00000", "probe_tool", json.dumps(_ARGUMENTS))


def _called(apply: Apply, form: Literal["object", "text", "none"]) -> str:
    """What the template adds for a call."""
    return _tried(apply, _calling(form), [_TOOL]).removeprefix(_tried(apply, [_USER], [_TOOL]))


def _call_format(written: str) -> CallFormat | None:
    if "<tool_call>" in written and '"arguments"' in written:
        return "hermes"
    if "[TOOL_CALLS]" in written and "[ARGS]" not in written:
        return "mistral"
    return "llama3" if '"parameters"' in written and '"name"' in written else None


def _tried(apply: Apply, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
    return _attempt(apply, list(messages), None if tools is None else list(tools), False)


def _attempt(write: Apply, *arguments: Any) -> str:
    """Nothing where the template refuses."""
    try:
        return write(*arguments)
    except Exception:  # noqa: BLE001 - a template is code that somebody else wrote; whatever it raises is a no
        return ""


def _hermes(call: Call) -> str:
    arguments = _loaded(call.arguments)
    body = f'{{"name": {json.dumps(call.name)}, "arguments": {json.dumps(arguments, ensure_ascii=False)}}}'
    return f"<tool_call>\n{body}\n</tool_call>"


def _loaded(arguments: str) -> Any:
    """Arguments that are no JSON stay the text they are."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
