"""The reply parser: however a reply is cut into pieces, the same text, thoughts and calls come out."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.dialect import CallFormat, Dialect
from sessions.reply_parser import Reading, ReplyParser, ReplyPiece, read

NAMES = ("f", "get_weather")
HERMES = Dialect(thinks=True)
MISTRAL = Dialect(call_format="mistral")
LLAMA = Dialect(call_format="llama3")


def told(parser: ReplyParser, pieces: list[str]) -> list[ReplyPiece]:
    out = [piece for text in pieces for piece in parser.decode(text)]
    return [*out, *parser.flush()]


CASES: list[tuple[Dialect, str, Reading]] = [
    (HERMES, "just text ", Reading("just text ", "", ())),
    (
        HERMES,
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{", "b": {"c": 1}}}\n</tool_call>',
        Reading("Let me see.", "", (("f", '{"a": "}\\"{", "b": {"c": 1}}'),)),
    ),
    (
        HERMES,
        '<tool_call>{"name":"f","arguments":{}}</tool_call>\n<tool_call>{"name": "get_weather", "arguments": {"x":1}}'
        "</tool_call> done",
        Reading("done", "", (("f", "{}"), ("get_weather", '{"x":1}'))),
    ),
    (HERMES, '<tool_call>{"arguments": {"b": 2}, "name": "f"}</tool_call>', Reading("", "", (("f", '{"b": 2}'),))),
    (HERMES, '<tool_call>{"name": "f", "arguments": {}, "id": {"}": 3}}</tool_call>', Reading("", "", (("f", "{}"),))),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"x": 1', Reading("", "", (("f", '{"x": 1'),))),
    (HERMES, "a\n<tool_call>no</tool_call> b", Reading("a\n<tool_call>no</tool_call> b", "", ())),
    (
        HERMES,
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        Reading('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", ()),
    ),
    (HERMES, 'a <tool_call>{"name": "f", "argu', Reading('a <tool_call>{"name": "f", "argu', "", ())),
    (HERMES, "a <tool_", Reading("a <tool_", "", ())),
    (
        HERMES,
        '\n<think>\n hm \n\n</think>\n\nSo: <tool_call>{"name": "f", "arguments": {}}</tool_call>',
        Reading("So:", "hm", (("f", "{}"),)),
    ),
    (HERMES, "<think>never ends </thi", Reading("", "never ends </thi", ())),
    (HERMES, "text <think>later</think>", Reading("text <think>later</think>", "", ())),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]',
        Reading("", "", (("f", '{"a": 1}'), ("f", "{}"))),
    ),
    (MISTRAL, "see [TOOL_CALLS] none", Reading("see [TOOL_CALLS] none", "", ())),
    (
        LLAMA,
        '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}',
        Reading("", "", (("f", '{"a": 1}'), ("f", "{}"))),
    ),
    (LLAMA, '{"answer": 1} it is', Reading('{"answer": 1} it is', "", ())),
    (LLAMA, '{"name": "Ann", "parameters": {}}', Reading('{"name": "Ann", "parameters": {}}', "", ())),
    (LLAMA, '{"id": "a", "type": "person"} it is', Reading('{"id": "a", "type": "person"} it is', "", ())),
    (LLAMA, '{"id": "call_1", "name": "f", "parameters": {}}', Reading("", "", (("f", "{}"),))),
    (LLAMA, '{"name": "f", "size": 1}', Reading('{"name": "f", "size": 1}', "", ())),
    (LLAMA, '{"name": "f"} then', Reading("then", "", (("f", "{}"),))),
    (LLAMA, ' {"type": "function", "name": "f", "parameters": {"a": 1}}', Reading("", "", (("f", '{"a": 1}'),))),
    (LLAMA, '{"parameters": {"a": "}"}, "id": 3, "name": "f"}', Reading("", "", (("f", '{"a": "}"}'),))),
    (LLAMA, '{"name": "f", "parameters": "{\\"a\\": 1}"}', Reading("", "", (("f", '{"a": 1}'),))),
    (LLAMA, '{"name": "f", "parameters": 3}', Reading('{"name": "f", "parameters": 3}', "", ())),
    (LLAMA, '<|python_tag|>{"x": 1}', Reading('<|python_tag|>{"x": 1}', "", ())),
    (LLAMA, '{"na\\u006de": "f"}', Reading('{"na\\u006de": "f"}', "", ())),
    (HERMES, '<tool_call>{"why": [1, "]"], "name": "f", "arguments": {}}</tool_call>', Reading("", "", (("f", "{}"),))),
    (LLAMA, 'see {"name": "f", "parameters": {}}', Reading('see {"name": "f", "parameters": {}}', "", ())),
]


@pytest.mark.parametrize(("dialect", "text", "expected"), CASES)
def test_a_reply_cut_anywhere_reads_the_same(dialect: Dialect, text: str, expected: Reading) -> None:
    assert read(dialect, text, names=NAMES) == expected
    for cut in range(len(text) + 1):
        assert Reading.of(told(ReplyParser(dialect, names=NAMES), [text[:cut], text[cut:]])) == expected
    assert Reading.of(told(ReplyParser(dialect, names=NAMES), list(text))) == expected


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "{", "}", "[", "]", ", ",
    '{"name": "f", "arguments": ', '{"name": "f", "parameters": {"a": 1}}', '"', "\\", "\n", " ", "text", ";",
]  # fmt: skip


@given(
    st.sampled_from(["hermes", "mistral", "llama3"]),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    st.booleans(),
    st.data(),
)
def test_any_text_cut_anyhow_reads_the_same(
    call_format: CallFormat, text: str, thinks: bool, data: st.DataObject
) -> None:
    dialect = Dialect(call_format=call_format, thinks=thinks)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert Reading.of(told(ReplyParser(dialect, names=NAMES), pieces)) == read(dialect, text, names=NAMES)


@given(st.text(max_size=60))
def test_without_tools_and_thoughts_text_is_text(text: str) -> None:
    assert read(Dialect(), text) == Reading(text, "", ())
    assert read(Dialect(), "<tool_call>" + text) == Reading("<tool_call>" + text, "", ())


def test_a_prompt_that_opened_the_thoughts() -> None:
    reading = read(HERMES, " I think.\n</think>\n\nSo.", is_thinking=True)
    assert (reading.reasoning, reading.text) == ("I think.", "So.")


def test_arguments_leave_as_they_come_and_a_call_says_once_who_it_is() -> None:
    ids = iter(["call_1", "call_2"])
    parser = ReplyParser(HERMES, names=NAMES, new_id=lambda: next(ids))
    texts = ['<tool_call>{"name": "f", ', '"arguments": {"a"', ": 1", "2}", "}</tool_", "call>"]
    pieces = [[call for piece in parser.decode(text) for call in piece.calls] for text in texts]
    assert [[(call.index, call.id, call.name, call.arguments) for call in calls] for calls in pieces] == [
        [],
        [(0, "call_1", "f", ""), (0, None, None, '{"a"')],
        [(0, None, None, ": 1")],
        [(0, None, None, "2}")],
        [],
        [],
    ]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ('{"answer": "yes"}', '{"a'),
        ('{"name": "Ann"}', '{"name": "'),
        ('{"name": "f", "nick": "g"}', '{"name": "f", "n'),
        ('{"name": "fx"}', '{"name": "f'),
        ("{answer}", "{"),
        ('{"parameters": [1]}', '{"parameters": '),
        ('{"id": 3, "x": 1}', '{"id": 3, "'),
        ('{"id": "x y z, ' + 99 * "." + '"}', '{"id": "x y z, ' + 56 * "."),
        ('{"id": ["a"]}', '{"id": '),
        ('{"id": 3, "id": 4}', '{"id": 3, "id'),
        ('{"id": 3, "type": "fun", "size": 7}', '{"id": 3, "type": "fun'),
        ('{"type": ["function"]}', '{"type": '),
        ('{"type": "function", "name": "h"}', '{"type": "function", "name": "'),
    ],
)
def test_an_object_is_held_back_no_longer_than_it_may_be_a_call(text: str, held: str) -> None:
    parser = ReplyParser(LLAMA, names=NAMES)
    assert not parser.decode(held)
    for character in text[len(held) :]:
        assert parser.decode(character)
    assert Reading.of(told(ReplyParser(LLAMA, names=NAMES), [text])).text == text


@pytest.mark.parametrize(
    ("dialect", "begun", "more"),
    [
        (LLAMA, "", '{"a": [1, 2], "b": {}}, '),
        (LLAMA, '{"parameters": {"a": [', '"x}", {}, '),
        (LLAMA, '{"name": "f", "parameters": {"a": [', '"x}", {}, '),
        (HERMES, '<tool_call>{"a": [', '"</tool_call>}", {}, '),
        (MISTRAL, '[TOOL_CALLS] [{"arguments": {"a": [', '"]}", {}, '),
    ],
)
def test_a_reply_costs_its_length(dialect: Dialect, begun: str, more: str) -> None:
    """Four times as much text takes nowhere near sixteen times as long, a few characters at a time."""

    def seconds(num_pieces: int) -> float:
        parser = ReplyParser(dialect, names=NAMES)
        parser.decode(begun)
        started = time.thread_time()
        for _ in range(num_pieces):
            parser.decode(more)
        parser.flush()
        return time.thread_time() - started

    assert min(seconds(8000) for _ in range(2)) < 9 * min(seconds(2000) for _ in range(3))


@pytest.mark.parametrize("dialect", [HERMES, MISTRAL, LLAMA])
def test_one_call_at_most(dialect: Dialect) -> None:
    call = '{"name": "f", "arguments": {}}'
    text = {
        "hermes": f"<tool_call>{call}</tool_call>\n<tool_call>{call}</tool_call>",
        "mistral": f"[TOOL_CALLS][{call}, {call}]",
        "llama3": f"{call}; {call}",
    }[dialect.call_format]
    parser = ReplyParser(dialect, names=NAMES, max_calls=1)
    assert Reading.of(told(parser, [text])).calls == (("f", "{}"),)
    assert parser.is_done and parser.num_calls == 1
