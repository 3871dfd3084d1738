"""Append-stability: templates that break it, each in the way real ones do, and what the doctor says of each."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from sessions.chat_template import TEMPLATE_DATE
from sessions.doctor.finding import Finding
from sessions.doctor.template import CONSTRUCTS, TURNS, date_finding, first_break, template_findings
from sessions.tokenizer import Tokenizer
from tests.fakes import CHATML_WITH_TOOLS, byte_tokenizer

TURN = "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

COUNTED = "{{ messages | length }}{% for m in messages %}" + TURN + "{% endfor %}" + OPEN
"""Says at its beginning how long the conversation is."""
TRIMMED = "{% for m in messages %}" + TURN.replace("m['content']", "m['content'] | trim") + "{% endfor %}" + OPEN
WITHOUT_OLD_THOUGHTS = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}"
    "{% if m.reasoning_content and loop.last %}{{'<think>\n' + m.reasoning_content + '\n</think>\n\n'}}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n'}}{% endfor %}" + OPEN
)
TOOLS_IN_THE_LAST_QUESTION = (
    "{% for m in messages %}{% if tools and loop.last %}{{'<|im_start|>tools\n'}}{{ tools | tojson }}"
    "{{'<|im_end|>\n'}}{% endif %}" + TURN + "{% endfor %}" + OPEN
)
SYSTEM_HOISTED = (
    "{% for m in messages if m['role'] == 'system' %}" + TURN + "{% endfor %}"
    "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + OPEN
)
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}" + TURN + "{% endfor %}" + OPEN
)


def findings(template: str, *markers: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in template_findings(byte_tokenizer(template, markers))}


def test_a_template_that_only_appends_breaks_nothing() -> None:
    found = findings(CHATML_WITH_TOOLS)
    assert [finding.verdict for finding in found.values()] == ["fine"]
    assert found["template"].figure == f"append-stable in {len(CONSTRUCTS)} of {len(CONSTRUCTS)} constructs"


def test_a_template_that_rewrites_its_beginning_is_a_failure() -> None:
    found = findings(COUNTED)
    turns = found["template: turns"]
    assert turns.verdict == "failure" and "'1" in turns.figure and "'5" in turns.figure
    assert turns.figure.startswith("0 of ") and "every turn starts anew" in turns.advice
    assert found["template"].figure == "append-stable in 2 of 10 constructs"  # those of models that think
    assert found["template"].verdict == "warning"


@pytest.mark.parametrize(
    ("template", "markers", "construct"),
    [
        (TRIMMED, (), "white space around a reply"),
        (WITHOUT_OLD_THOUGHTS, ("<think>", "</think>"), "thoughts"),
    ],
)
def test_what_a_template_changes_in_a_reply_is_healed_by_splicing(
    template: str, markers: tuple[str, ...], construct: str
) -> None:
    found = findings(template, *markers)
    broken = found[f"template: {construct}"]
    assert broken.verdict == "warning" and "put in as generated" in broken.advice
    assert "template: turns" not in found


def test_what_cannot_be_healed_is_named_counted_and_shown() -> None:
    tokenizer = byte_tokenizer(SYSTEM_HOISTED)
    found = {finding.check: finding for finding in template_findings(tokenizer)}
    broken = found["template: a later system message"]
    assert broken.verdict == "warning" and "reuse less" in broken.advice
    construct = next(construct for construct in CONSTRUCTS if construct.name == "a later system message")
    at = first_break(tokenizer, construct, splices=True)
    assert at is not None and at.computed.startswith("user") and at.rendered.startswith("system")
    assert at.num_kept == len("(system\n") + len(construct.messages[0].content) + len(")\n(")
    assert first_break(tokenizer, TURNS, splices=False) is None
    assert set(found) == {"template", "template: a later system message"}


def test_tools_that_move_with_the_last_question_are_held_where_they_were() -> None:
    assert set(findings(TOOLS_IN_THE_LAST_QUESTION)) == {"template"}


def test_a_refused_construct_is_told_with_the_template_s_own_words() -> None:
    found = findings(SYSTEM_FIRST)
    refused = found["template: a later system message"]
    assert refused.verdict == "warning" and "system comes first" in refused.figure
    assert findings("{{ raise_exception('no') }}")["template: turns"].verdict == "failure"


def test_a_date_is_told_where_one_is_printed(chatml_folder: Path, tmp_path: Path) -> None:
    dated_folder = shutil.copytree(chatml_folder, tmp_path / "dated")
    template = dated_folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %B %Y') }}\n" + template.read_text())

    def dated(folder: Path) -> Finding | None:
        tomorrow = TEMPLATE_DATE + timedelta(days=1)
        return date_finding(Tokenizer.load(folder), Tokenizer.load(folder, today=tomorrow))

    said = dated(dated_folder)
    assert said is not None and said.verdict == "fine" and "26 July 2024" in said.figure
    assert dated(chatml_folder) is None
