"""Which templates write each message by itself; the next turn's text is the same without the messages between."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sessions.chat_template import DEFAULT_TEMPLATE
from sessions.conversation import canonical
from sessions.prompt import ChatTemplate
from sessions.render import Known, render
from sessions.template_shape import writes_each_alone
from sessions.tokenizer import Tokenizer
from sessions.types import Message
from tests import templates
from tests.fakes import CHATML_WITH_TOOLS, byte_tokenizer

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
TRIMMING = """{% if messages[0].role == 'system' %}{{ '[' + messages[0].content | trim + ']' }}{% endif -%}
{% for m in messages %}{% if m.role not in ('user', 'assistant', 'system') %}{{ raise_exception('role') }}{% endif -%}
{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content.strip() ~ '<|im_end|>\n' }}{% endfor -%}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
ALONE = {"smollm2": SMOLLM2, "chatml": DEFAULT_TEMPLATE, "tools": CHATML_WITH_TOOLS, "trimming": TRIMMING}
OPENS = "{% if add_generation_prompt %}>{% endif %}"


def shape(source: str) -> bool:
    return writes_each_alone(ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(source))


@pytest.mark.parametrize("source", ALONE.values(), ids=ALONE)
def test_templates_that_write_each_message_alone(source: str) -> None:
    assert shape(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ loop.index0 }}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ loop['last'] }}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{{ loop.previtem.role }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ loop.changed(m.role) }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{{ messages[-1].role }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{{ messages | length }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{{ messages[1].role }}{% endfor %}" + OPENS,
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages if m.role == 'user' %}{{ loop.first }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{% else %}none{% endfor %}" + OPENS,
        "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{{ m.content }}{% endfor %}" + OPENS,
        "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}{{ n.i }}{% endfor %}" + OPENS,
        "{% set last = messages[-1] %}{% for m in messages %}{{ last.role }}{% endfor %}" + OPENS,
        "{% set messages = messages[1:] %}{% for m in messages %}{{ m.content }}{% endfor %}" + OPENS,
        "{% set c = cycler('a', 'b') %}{% for m in messages %}{{ c.next() }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{{ add_generation_prompt }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ m.content }}{% endfor %}END" + OPENS,
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% else %}<{% endif %}",
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if messages[-1].role == 'user' %}>{% endif %}",
        "{% for m in messages %}{{ m.role }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}" + OPENS,
        "{% for m in messages %}{% for o in messages %}{{ o.role }}{% endfor %}{% endfor %}" + OPENS,
        "{% for messages in messages %}{{ messages[0] }}{% endfor %}" + OPENS,
        "{% for m in messages %}{{ [1, 2] | random }}{% endfor %}" + OPENS,
        "{{ messages | tojson }}" + OPENS,
        templates.GEMMA,
        templates.MISTRAL,
    ],
)
def test_templates_that_look_further(source: str) -> None:
    assert not shape(source)


PIECES = (
    "{{ m.content }}",
    "{{ m.role | trim }};",
    "{% if loop.first %}^{% endif %}",
    "{% if messages[0].role == m.role %}={% endif %}",
    "{% for t in tools %}{{ t }}{% if loop.first %}-{% endif %}{% endfor %}",
    "{% if loop.last %}${% endif %}",
    "{{ loop.revindex }}",
    "{{ messages[-1].content }}",
    "{{ loop.nextitem is defined }}",
    "{% if not add_generation_prompt %}?{% endif %}",
)
ITEMS = st.builds(dict, role=st.sampled_from(("system", "user", "assistant")), content=st.sampled_from(("", "a", " b")))


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=4).map("".join),
    around=st.sampled_from((("", ""), ("{{ messages[0].content }}", ""), ("", "."), ("{{ messages | length }}", ""))),
    first=ITEMS,
    known=st.lists(ITEMS, max_size=3),
    new=st.lists(ITEMS, min_size=1, max_size=3),
)
def test_what_is_said_to_be_written_alone_is(
    pieces: str, around: tuple[str, str], first: dict[str, str], known: list[dict[str, str]], new: list[dict[str, str]]
) -> None:
    source = around[0] + "{% for m in messages %}" + pieces + "{% endfor %}" + around[1] + OPENS
    if not shape(source):
        return
    template = ImmutableSandboxedEnvironment().from_string(source)

    def written(messages: Sequence[Any], is_open: bool) -> str:
        return template.render(messages=messages, tools=["t", "u"], add_generation_prompt=is_open)

    before, shut = written([first, *known], False), written([first], False)
    assert written([first, *known, *new], True) == before + written([first, *new], True)[len(shut) :]


def counting(template: ChatTemplate) -> tuple[ChatTemplate, list[int]]:
    """The template, and how many messages it was given each time."""
    counts: list[int] = []

    def apply(messages: Sequence[Any], *others: Any, **options: Any) -> str:
        counts.append(len(messages))
        return template.apply(messages, *others, **options)

    return replace(template, apply=apply), counts


@pytest.mark.parametrize("system", [(), (Message("system", "Be kind."),)], ids=["user first", "system first"])
@pytest.mark.parametrize("name", ALONE)
def test_the_next_turn_is_written_without_the_messages_between(name: str, system: tuple[Message, ...]) -> None:
    tokenizer: Tokenizer = byte_tokenizer(ALONE[name])
    template, counts = counting(tokenizer.template)
    messages = [*system, *(Message(("user", "assistant")[at % 2], f"Text {at}.") for at in range(41))]  # type: ignore[arg-type]
    before = render(canonical(messages, ()), template)
    reply = " A reply. "
    ids = [*tokenizer.encode(before), *tokenizer.encode_text(reply, scope="")]
    known = Known(len(messages), before.text, reply, len(reply), ids)
    asked = canonical([*messages, Message("assistant", reply), Message("user", "And?")], ())
    counts.clear()
    prompt = render(asked, template, known=known)
    strips = name == "trimming"  # then the reply is not what was said: all is looked at
    assert bool(prompt.known_ids) != strips and (max(counts) > 40) == strips
    whole = render(asked, tokenizer.template)
    assert prompt.text == whole.text
    assert tokenizer.encode(prompt) == tokenizer.encode(whole)
