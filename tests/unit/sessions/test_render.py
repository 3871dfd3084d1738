"""render/1: canonical order, append-stability, located contents, and no control token from anybody's text."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise, zip_longest
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.control_tokens import ControlToken, ControlTokens
from sessions.dialect import Dialect
from sessions.errors import InvalidRequest
from sessions.prompt import ChatTemplate, Move, TemplateError
from sessions.tokenizer import Tokenizer
from sessions.types import Breakpoint, Message, Part, Role, TokenId, Tool, ToolCall
from tests.rendering import render

START, END, THINK = TokenId(1), TokenId(2), TokenId(3)
CONTROL = ControlTokens(
    [ControlToken(START, "<|im_start|>"), ControlToken(END, "<|im_end|>"), ControlToken(THINK, "<think>")]
)

CONTROL_TEXT = ["<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<", "|>", "<think>", "<<|im_end|>"]
SPACE = [" ", "\n", "\t", "\u3000"]
OTHER = ["a", "assistant", "é", "e\u0301", "😀", "\ue000", "\uf8ff", "\U000f0000", "{{", "{% if %}", "\0"]
pieces = st.sampled_from([*CONTROL_TEXT, *SPACE, *OTHER])
texts = st.lists(pieces, max_size=8).map("".join)
turns = st.lists(st.tuples(texts, texts), max_size=4)


def chatml(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, generate: bool) -> str:
    system = "".join(f"[{tool['function']}]" for tool in tools or ())
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return system + text + ("<|im_start|>assistant\n" if generate else "")


CHATML = ChatTemplate(chatml, CONTROL, digest="chatml")


def conversation(system: str, exchanges: list[tuple[str, str]]) -> list[Message]:
    messages = [Message("system", system)]
    for question, answer in exchanges:
        messages += [Message("user", question), Message("assistant", answer)]
    return messages


@pytest.mark.parametrize(
    ("roles", "rendered", "moves"),
    [
        ("s u", "s0 u1", []),
        ("u s", "s1 u0", [("messages[1]", "messages[0]")]),
        ("u d u s a s", "s1+3 u0 u2 a4 s5", [("messages[1]", "messages[0]"), ("messages[3]", "messages[1]")]),
        ("a s u", "a0 s1 u2", []),
        ("s d u a", "s0+1 u2 a3", []),
        ("u t s", "s2 u0 t1", [("messages[2]", "messages[0]")]),
    ],
)
def test_canonical_order(roles: str, rendered: str, moves: list[tuple[str, str]]) -> None:
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    messages = [Message(names[role], str(at)) for at, role in enumerate(roles.split())]  # type: ignore[arg-type]
    prompt = render(messages, [], CHATML, add_generation_prompt=False)
    expected = [
        f"<|im_start|>{names[word[0]]}\n{word[1:].replace('+', chr(10) * 2)}<|im_end|>\n" for word in rendered.split()
    ]
    assert prompt.text == "".join(expected)
    assert prompt.moves == tuple(Move(*move) for move in moves)


def test_developer_is_system_and_empty_parts_vanish() -> None:
    one = render([Message("system", "be kind"), Message("developer", ""), Message("user", "hi")], [], CHATML)
    other = render([Message("user", "hi"), Message("developer", "be kind")], [], CHATML)
    assert one.text == other.text


def test_tools_and_key_order_do_not_matter() -> None:
    schema = {
        "type": "object",
        "properties": {"b": {"type": "string"}, "a": {"type": "number", "enum": [2, 1]}},
    }
    shuffled = {
        "properties": {"a": {"enum": [2, 1], "type": "number"}, "b": {"type": "string"}},
        "type": "object",
    }
    one = render([Message("user", "x")], [Tool("f", "does", schema), Tool("a")], CHATML)
    other = render([Message("user", "x")], [Tool("a"), Tool("f", "does", shuffled)], CHATML)
    assert one.text == other.text
    assert one.moves == (Move("tools[1]", "tools[0]"), Move("tools[0]", "tools[1]"))
    reordered = {**schema, "properties": {"a": {"type": "number", "enum": [1, 2]}}}
    assert render([Message("user", "x")], [Tool("f", "does", reordered), Tool("a")], CHATML).text != one.text


def test_tools_that_the_template_leaves_out_end_the_system_message() -> None:
    without = replace(CHATML, dialect=Dialect(has_tools=False))
    for system in ([], [Message("system", "Be kind.")]):
        text = render([*system, Message("user", "x")], [Tool("f", "does <|im_end|>")], without).text
        assert text.startswith("<|im_start|>system\n" + ("Be kind.\n\n" if system else "") + "# Tools\n")
        line = '{"function": {"description": "does <|im_end|>", "name": "f"}, "type": "function"}'
        assert f"<tools>\n{line}\n</tools>" in text
        assert text.endswith("</tool_call><|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")


@given(texts, turns, texts, st.integers(0, 5))
def test_where_the_system_message_stands_does_not_matter(
    system: str, exchanges: list[tuple[str, str]], question: str, seed: int
) -> None:
    before_reply = [Message("user", question), Message("user", "again"), Message("system", system)]
    after = conversation("", exchanges)[1:]
    shuffled = random.Random(seed).sample(before_reply[:2], 2)
    canonical = render([before_reply[2], *shuffled, *after], [], CHATML)
    assert render([shuffled[0], before_reply[2], shuffled[1], *after], [], CHATML).text == canonical.text
    assert render([*shuffled, before_reply[2], *after], [], CHATML).segments == canonical.segments


@given(texts, turns)
def test_appending_turns_changes_nothing_before_them(system: str, exchanges: list[tuple[str, str]]) -> None:
    messages = conversation(system, exchanges)
    whole = render(messages, [], CHATML, add_generation_prompt=False)
    for length in range(1, len(messages)):
        part = render(messages[:length], [], CHATML, add_generation_prompt=False)
        assert whole.text.startswith(part.text)
        assert whole.segments[: len(part.segments) - 1] == part.segments[:-1]  # the last "\n" may go on
        if messages[length].role == "assistant":
            assert whole.text.startswith(render(messages[:length], [], CHATML).text)


@given(texts, turns)
def test_no_text_becomes_a_control_token(system: str, exchanges: list[tuple[str, str]]) -> None:
    messages = conversation(system, exchanges)
    prompt = render(messages, [], CHATML, add_generation_prompt=False)
    assert [segment.control_id for segment in prompt.segments if segment.control_id] == [START, END] * len(messages)
    assert (
        "".join(segment.text for segment in prompt.segments)
        == prompt.text
        == chatml([{"role": m.role, "content": m.content} for m in messages], None, False)
    )
    for segment in prompt.segments:
        assert prompt.text.startswith(segment.text, segment.start)


def test_the_longest_control_token_is_found() -> None:
    texts = ["<a>", "<a><b>", "<", "[x]"]
    tokens = ControlTokens(ControlToken(TokenId(at), text) for at, text in enumerate(texts))
    found = [match.token.text for match in tokens.find("<a> <a><b> <a>< [x][x [y]")]
    assert found == ["<a>", "<a><b>", "<a>", "<", "[x]"]
    assert list(ControlTokens([]).find("<a>")) == []


@given(texts, turns)
def test_contents_are_located(system: str, exchanges: list[tuple[str, str]]) -> None:
    messages = conversation(system, exchanges)
    prompt = render(messages, [], CHATML)
    located = {span.message: prompt.text[span.start : span.end] for span in prompt.contents}
    assert located == {at: m.content for at, m in enumerate(messages) if m.content.strip()}
    for span in prompt.contents:
        assert prompt.content_at(span.start) == prompt.content_at(span.end - 1) == span
        (holder,) = [segment for segment in prompt.segments if span in prompt.contents_within(segment)]
        assert holder.control_id is None
    assert prompt.content_at(0) is prompt.content_at(len(prompt.text) - 1) is None


def test_contents_are_located_after_trimming_and_not_after_rewriting() -> None:
    def trimmed(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        return chatml([{**m, "content": m["content"].strip()} for m in messages], tools, generate)

    def rewritten(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        return chatml([{**m, "content": m["content"].replace("b", "")} for m in messages], tools, generate)

    def ended(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        return chatml(messages, tools, generate) + ("!" if "b" in messages[0]["content"] else "")

    messages = [Message("user", "  a b \n"), Message("assistant", "  ")]
    prompt = render(messages, [], replace(CHATML, apply=trimmed))
    assert [prompt.text[span.start : span.end] for span in prompt.contents] == ["a b"]
    for apply in (rewritten, ended):
        assert render(messages, [], replace(CHATML, apply=apply)).contents == ()


@pytest.mark.parametrize(
    ("role", "content"),
    [
        ("<|", "im_end"),
        ("<|im_", "end|>"),
        ("<|im_end", "|>"),
        ("<", "|im_end|>"),
        ("<think", ">"),
        ("", "<|im_end"),
        ("", "<|im_start|>x<|im_end"),
    ],
)
def test_a_template_that_writes_half_a_control_token_cannot_be_completed(role: str, content: str) -> None:
    def half(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        return f"{role}{messages[0]['content'].strip()}|>"

    prompt = render([Message("user", f" {content}\n")], [], replace(CHATML, apply=half))
    assert [segment.control_id for segment in prompt.segments] == [None]
    assert prompt.text == f"{role}{content}|>"


def test_tool_text_cannot_become_a_control_token() -> None:
    tool = Tool("f", "<|im_end|>", {"<think>": {"enum": ["<|im_start|>"]}})
    prompt = render([Message("user", "x"), Message("tool", "y", tool_call_id="<|im_end|>")], [tool], CHATML)
    assert [segment.control_id for segment in prompt.segments if segment.control_id] == [
        START,
        END,
        START,
        END,
        START,
    ]
    assert "<think>" in prompt.text


@pytest.mark.parametrize("arguments", ["object", "text", "none"])
@pytest.mark.parametrize(
    "written",
    [
        r'{"a": ["\u003c|im_end|\u003e"]}',
        r'["\u003c|im_end|>\n<|im_start|\u003e"]',
        r'"\u003c|im_end|\u003e"',
        r'"\"\\u003c|im_end|\\u003e\""',
        r'{"a": "\u003c|im_end|\u003e", "b": ' + "9" * 5000 + "}",
        '{"a":' * 2000 + r'"\u003c|im_end|\u003e"' + "}" * 2000,
        r'{"a": "\ud800 \u003c|im_end|\u003e"}',
    ],
)
def test_an_escape_in_a_calls_arguments_cannot_become_a_control_token(arguments: Any, written: str) -> None:
    def with_calls(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        def said(message: dict[str, Any]) -> str:
            made = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
            return message["content"] + "".join(
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in made
            )

        return chatml([message | {"content": said(message)} for message in messages], tools, generate)

    template = replace(CHATML, apply=with_calls, dialect=Dialect(arguments=arguments))
    calling = Message("assistant", tool_calls=(ToolCall("c", "f", written),))
    prompt = render([Message("user", "x"), calling, Message("user", "y")], [], template)
    written_by_the_template = [START, END] * 3 + [START]
    assert [segment.control_id for segment in prompt.segments if segment.control_id] == written_by_the_template
    prompt.text.encode()


def test_stand_ins_that_the_template_escapes_come_back_and_lookalikes_stay() -> None:
    def as_json(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        return json.dumps(messages[0]["content"]) + chatml(messages, tools, generate)

    content = r"\ue000 \ue001 \uf8ff <think>"
    prompt = render([Message("user", content)], [], replace(CHATML, apply=as_json))
    assert prompt.text == as_json([{"role": "user", "content": content}], None, True)
    assert THINK not in [segment.control_id for segment in prompt.segments]


def test_every_private_use_code_point_taken() -> None:
    everything = "".join(map(chr, range(0xE000, 0xF900)))
    assert render([Message("user", everything[2:])], [], CHATML).contents
    with pytest.raises(InvalidRequest, match="private-use"):
        render([Message("user", "<think>" + everything[2:])], [], CHATML)


def refusing(*allowed: int) -> ChatTemplate:
    def apply(messages: list[dict[str, Any]], tools: Any, generate: bool) -> str:
        if any(m["role"] == "system" and at not in allowed for at, m in enumerate(messages)):
            raise TemplateError("no system here")
        if any(one["role"] == other["role"] for one, other in pairwise(messages)):
            raise TemplateError("roles must alternate")
        return chatml(messages, tools, generate)

    return replace(CHATML, apply=apply)


@pytest.mark.parametrize(
    ("template", "roles", "param"),
    [
        (refusing(0), ["user", "assistant", "system", "user"], "messages[2].role"),
        (refusing(0), ["system", "user", "assistant", "developer"], "messages[3].role"),
        (refusing(), ["user", "system"], "messages[1].role"),
        (refusing(), ["system", "developer", "user"], "messages[0].role"),
        (refusing(0), ["system", "user", "user"], "messages"),
    ],
)
def test_refusals_name_the_message(template: ChatTemplate, roles: list[Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        render([Message(role, "x") for role in roles], [], template)
    assert raised.value.param == param


def test_two_leading_system_messages_suit_a_template_that_takes_one() -> None:
    roles: list[Any] = ["system", "user", "developer", "assistant"]
    assert render([Message(role, "x") for role in roles], [], refusing(0)).text.count("system\nx\n\nx") == 1


def test_a_real_sandboxed_template_refuses_by_name(mistral_folder: Path) -> None:
    template = Tokenizer.load(mistral_folder).template
    with pytest.raises(InvalidRequest, match="system must come first") as raised:
        render([Message("user", "a"), Message("assistant", "b"), Message("system", "c")], [], template)
    assert raised.value.param == "messages[2].role"


# -- stable_first --

parts_of_a_message = st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=4)
leading_blocks = st.lists(parts_of_a_message, min_size=1, max_size=3)


def in_parts(role: Role, parts: Sequence[tuple[str, bool]]) -> Message:
    """As `proxy.translate` makes it of (text, is_marked) pairs."""
    ends = list(accumulate(len(text) for text, _ in parts))
    spans = zip([0, *ends], ends, parts, strict=False)
    kept = tuple(Part(start, end, Breakpoint() if is_marked else None) for start, end, (_, is_marked) in spans)
    content = "".join(text for text, _ in parts)
    return Message(role, content, parts=kept if any(is_marked for _, is_marked in parts) else ())


def system_text(messages: Sequence[Message], *, stable_first: bool = True) -> str:
    prompt = render(messages, [], CHATML, add_generation_prompt=False, stable_first=stable_first)
    return prompt.text.removeprefix("<|im_start|>system\n").partition("<|im_end|>\n<|im_start|>user")[0]


@pytest.mark.parametrize(
    ("blocks", "rendered", "moves"),
    [
        (["A+ b"], "Ab", []),
        (["b A+"], "Ab", [("[0].content[1]", 0), ("[0].content[0]", 1)]),
        (["b c"], "bc", []),
        (["A+ B+"], "AB", []),
        (["b", "A+"], "A\n\nb", [("[1].content[0]", 0), ("[0]", 1)]),
        (
            ["b A+", "c B+"],
            "A\n\nB\n\nb\n\nc",
            [("[0].content[1]", 0), ("[1].content[1]", 1), ("[0].content[0]", 2), ("[1].content[0]", 3)],
        ),
        (["b A+ c"], "Abc", [("[0].content[1]", 0), ("[0].content[0]", 1)]),
        (["", "b", "A+"], "A\n\nb", [("[2].content[0]", 0), ("[1]", 1)]),
    ],
)
def test_marked_parts_go_first_and_every_move_is_reported(
    blocks: list[str], rendered: str, moves: list[tuple[str, int]]
) -> None:
    messages = [
        in_parts("system", [(word.rstrip("+"), word.endswith("+")) for word in block.split()]) for block in blocks
    ]
    prompt = render([*messages, Message("user", "hi")], [], CHATML, stable_first=True)
    assert system_text([*messages, Message("user", "hi")]) == rendered
    assert prompt.moves == tuple(Move(f"messages{source}", f"messages[0].content[{at}]") for source, at in moves)
    assert prompt.content_at(prompt.text.index(rendered)) == prompt.contents[0]


def test_moved_messages_and_moved_parts_are_both_reported() -> None:
    messages = [Message("user", "hi"), in_parts("system", [("b", False), ("A", True)])]
    prompt = render(messages, [], CHATML, stable_first=True)
    assert prompt.moves == (
        Move("messages[1]", "messages[0]"),
        Move("messages[1].content[1]", "messages[0].content[0]"),
        Move("messages[1].content[0]", "messages[0].content[1]"),
    )


def test_only_the_leading_system_block_is_reordered() -> None:
    turns = [Message("user", "hi"), Message("assistant", "ho")]
    later = in_parts("system", [("b", False), ("A", True)])
    asked = in_parts("user", [("b", False), ("A", True)])
    messages = [*turns, later, asked]
    assert render(messages, [], CHATML, stable_first=True) == render(messages, [], CHATML)


@given(leading_blocks, turns)
def test_off_nothing_changes_and_unmarked_nothing_moves(
    blocks: list[list[tuple[str, bool]]], exchanges: list[tuple[str, str]]
) -> None:
    after = conversation("", exchanges)[1:]
    marked = [in_parts("system", parts) for parts in blocks]
    plain = [Message("system", message.content) for message in marked]
    assert render([*marked, *after], [], CHATML) == render([*plain, *after], [], CHATML)
    assert render([*plain, *after], [], CHATML, stable_first=True) == render([*plain, *after], [], CHATML)


@given(parts_of_a_message, st.randoms())
def test_how_marked_and_unmarked_parts_are_interleaved_does_not_matter(
    parts: list[tuple[str, bool]], chance: random.Random
) -> None:
    """Each kind keeps its own order; only which kind comes next is shuffled."""
    marked, unmarked = ([part for part in parts if part[1] is kind] for kind in (True, False))
    kinds = [is_marked for _, is_marked in parts]
    chance.shuffle(kinds)
    sources = {True: iter(marked), False: iter(unmarked)}
    shuffled = in_parts("system", [next(sources[kind]) for kind in kinds])
    user = Message("user", "hi")
    assert system_text([shuffled, user]) == system_text([in_parts("system", marked + unmarked), user])


@given(leading_blocks, leading_blocks)
def test_what_is_marked_is_a_prefix_whatever_else_is_said(
    one: list[list[tuple[str, bool]]], other: list[list[tuple[str, bool]]]
) -> None:
    """The same marked parts among other unmarked ones: the prompts agree to the end of the marked text."""

    def among(strangers: list[list[tuple[str, bool]]]) -> str:
        volatile = [[(text, False) for text, _ in parts] for parts in strangers]
        stable = [[(text, True) for text, is_marked in parts if is_marked] for parts in one]
        mixed = [v + s for v, s in zip_longest(volatile, stable, fillvalue=[])]
        messages = [in_parts("system", parts) for parts in mixed if parts]
        return render([*messages, Message("user", "hi")], [], CHATML, stable_first=True).text

    marked = ["".join(text for text, is_marked in parts if is_marked) for parts in one]
    prefix = "<|im_start|>system\n" + "\n\n".join(text for text in marked if text)
    assert among(one).startswith(prefix)
    assert among(other).startswith(prefix)


@given(leading_blocks, turns)
def test_appending_turns_changes_nothing_before_them_with_stable_first(
    blocks: list[list[tuple[str, bool]]], exchanges: list[tuple[str, str]]
) -> None:
    messages = [*(in_parts("system", parts) for parts in blocks), *conversation("", exchanges)[1:]]
    whole = render(messages, [], CHATML, add_generation_prompt=False, stable_first=True)
    for length in range(len(blocks), len(messages)):
        part = render(messages[:length], [], CHATML, add_generation_prompt=False, stable_first=True)
        assert whole.text.startswith(part.text)
        assert whole.segments[: len(part.segments) - 1] == part.segments[:-1]
        assert whole.moves == part.moves


@given(leading_blocks)
def test_nothing_is_lost_and_no_text_becomes_a_control_token_by_moving(blocks: list[list[tuple[str, bool]]]) -> None:
    messages = [in_parts("system", parts) for parts in blocks]
    prompt = render([*messages, Message("user", "hi")], [], CHATML, add_generation_prompt=False, stable_first=True)
    assert [segment.control_id for segment in prompt.segments if segment.control_id] == [START, END] * 2
    said = "".join(message.content for message in messages)
    assert sorted(system_text([*messages, Message("user", "hi")]).replace("\n", "")) == sorted(said.replace("\n", ""))
