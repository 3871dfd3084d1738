"""Dialect: what is measured on a template, and that a call it renders is read back as the same."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

from sessions.conversation import Call, Turn
from sessions.dialect import Apply, Dialect, measure
from sessions.reply_parser import read
from tests import templates

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
HERMES = """{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}"""
LLAMA = """{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- for m in messages %}<|{{ "ipython" if m.role == "tool" else m.role }}|>
{%- if m.tool_calls %}{% set c = m.tool_calls[0].function -%}
{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
MISTRAL = """{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}{% if m.role == "tool" %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]
{%- elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls -%}
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}
{%- if not loop.last %}, {% endif %}{% endfor %}]{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"""
SOURCES = {
    "hermes": HERMES, "llama3": LLAMA, "mistral": MISTRAL, "plain": PLAIN,
    "gemma 2": templates.GEMMA, "mistral 7b": templates.MISTRAL,
}  # fmt: skip
CALL = Call("call00001", "weather", '{"city": "Zürich \\"}", "days": 2}')
SCHEMA = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def applied(source: str) -> Apply:
    compiled = _cached_compile_jinja_template(source)

    def apply(messages: list[Any], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        return str(compiled.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt))

    return apply


def measured(name: str) -> Dialect:
    return measure(applied(SOURCES[name]), SOURCES[name], frozenset())


@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral"])
def test_measures_what_a_template_writes(name: str) -> None:
    dialect = measured(name)
    assert (dialect.has_tools, dialect.has_results, dialect.arguments) == (True, True, "object")
    assert dialect.call_format == name


def test_measures_what_a_template_leaves_out() -> None:
    dialect = measured("plain")
    assert (dialect.has_tools, dialect.arguments, dialect.call_format) == (False, "none", "hermes")


def test_measures_how_conversations_must_go() -> None:
    assert measured("hermes") == Dialect(True, True, "object")
    assert measured("gemma 2") == Dialect(False, False, has_system=False, alternates=True)
    assert measured("mistral 7b") == Dialect(True, True, "object", "mistral", alternates=True, anchors=True)


SYSTEM, ANSWER = Turn("system", "Be terse."), Turn("assistant", "Fine.")
CALLED = Turn("assistant", "", tool_calls=(CALL,))
TURNS = [
    Turn("user", "Hi"), CALLED, Turn("tool", "sunny", CALL.id), Turn("tool", "dry", CALL.id), ANSWER,
    Turn("user", "And?"), CALLED, Turn("tool", "rain", CALL.id), ANSWER, Turn("user", "Bye"), ANSWER,
]  # fmt: skip


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("has_system", [False, True])
@pytest.mark.parametrize("schemas", [None, [SCHEMA]])
def test_what_was_said_stays_where_it_was_written(name: str, has_system: bool, schemas: Any) -> None:
    dialect, apply = measured(name), applied(SOURCES[name])
    turns = [SYSTEM, *TURNS] if has_system and dialect.has_system else TURNS
    before = ""
    for end, turn in enumerate(turns, 1):
        if turn.role == "assistant":
            written = dialect.apply(apply, turns[:end], schemas, False)
            assert written.startswith(before), (before, written)
            before = written
    said = [
        "sunny",
        "dry",
        "rain",
        "And?",
        *(["Be terse."] if turns is not TURNS else []),
        *(["weather"] if schemas else []),
    ]
    assert all(before.count(text) == 1 or text == "weather" for text in said), before
    assert not schemas or '"type": "function"' in before[: before.index("Hi")] or name == "plain"


@pytest.mark.parametrize("name", SOURCES)
def test_a_rendered_call_is_read_back(name: str) -> None:
    dialect, apply = measured(name), applied(SOURCES[name])
    turns = [Turn("user", "Hi"), Turn("assistant", "", tool_calls=(CALL,)), Turn("tool", "sunny", CALL.id)]
    lengths = []
    for end in (1, 2, 3):
        written = dialect.apply(apply, turns[:end], [SCHEMA], False)
        lengths.append(len(written))
    assert "weather" in written[: lengths[0]]
    assert "sunny" in written[lengths[1] :]
    call = (
        written[lengths[0] : lengths[1]]
        .removeprefix("<|assistant|>")
        .removeprefix("<assistant>")
        .removeprefix("<|im_start|>model\n")
    )
    assert read(dialect, call, names=["weather"]).calls == ((CALL.name, CALL.arguments),)
