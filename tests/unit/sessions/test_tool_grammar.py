"""Tool grammar: each one compiles, takes a right call, refuses a wrong one, and leaves no other way to call."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.dialect import CallFormat, Dialect
from sessions.errors import InvalidRequest
from sessions.grammars import GrammarConstraint, Grammars
from sessions.reply_parser import Reading, read
from sessions.tokenizer import Tokenizer
from sessions.tool_grammar import reply_grammar
from sessions.types import ChatRequest, Grammar, Message, SamplingParams, Tool, ToolChoice
from tests.fakes import byte_tokenizer, open_fake_service

FORMATS: list[CallFormat] = ["hermes", "llama3", "mistral"]
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>")
TEXT, TOKENS = byte_tokenizer(), byte_tokenizer(markers=MARKERS)
"""Markers are text to the one, and tokens to the other; some of them special, some not."""
MARKER_IDS = {marker: 258 + at for at, marker in enumerate(MARKERS)}
EOS = next(iter(TEXT.eos_token_ids))
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("weather", parameters=CITY, strict=True), Tool("clock"))
LOOSE = (Tool("weather", parameters=CITY), Tool("clock"))
FORMAT = {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}
BODY = Grammar("json_schema", json.dumps(FORMAT))
REQUIRED = ToolChoice("required")
CHOICES = {
    "required": REQUIRED,
    "named": ToolChoice("required", ("weather",), is_parallel=False),
    "allowed": ToolChoice("required", ("weather",)),
    "format": ToolChoice("auto"),
}


MADE: dict[Tokenizer, Grammars] = {}


@pytest.fixture(scope="module", autouse=True)
def closed_grammars() -> Iterator[None]:
    yield
    for made in MADE.values():
        made.close()


def grammars(tokenizer: Tokenizer) -> Grammars:
    if tokenizer not in MADE:
        MADE[tokenizer] = Grammars(tokenizer)
    return MADE[tokenizer]


def calls(form: CallFormat, *made: tuple[str, str]) -> str:
    key = "parameters" if form == "llama3" else "arguments"
    each = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in made]
    match form:
        case "hermes":
            return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in each)
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(each)}]"
        case "llama3":
            return "; ".join(each)


def grammar_of(
    dialect: Dialect, choice: ToolChoice, *, tools: tuple[Tool, ...] = TOOLS, has_tokens: bool = False, **more: bool
) -> Grammar | None:
    request = ChatRequest((), tools=tools, tool_choice=choice)
    return reply_grammar(dialect, MARKER_IDS if has_tokens else {}, request, **{"is_thinking": False, **more})


async def accepts(grammar: Grammar | None, text: str, *, has_tokens: bool = False) -> bool:
    """Whether a reply may be `text` and end there."""
    assert grammar is not None
    tokenizer = TOKENS if has_tokens else TEXT
    pieces = re.split(f"({'|'.join(map(re.escape, MARKERS))})", text) if has_tokens else [text]
    token_ids: list[int] = []
    for piece in pieces:
        token_ids += [MARKER_IDS[piece]] if piece in MARKERS and has_tokens else tokenizer.encode_text(piece, scope="")
    return takes((await grammars(tokenizer).compile(grammar)).constraint(), token_ids)


def takes(constraint: GrammarConstraint, token_ids: list[int]) -> bool:
    if constraint.num_legal(token_ids) < len(token_ids):
        return False
    for token_id in token_ids:
        constraint.accept(token_id)
    return constraint.is_complete or bool(constraint.masks(())[0][EOS // 8] >> EOS % 8 & 1)


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("form", FORMATS)
async def test_takes_right_calls_only(form: CallFormat, name: str, thinks: bool, has_tokens: bool) -> None:
    params = SamplingParams(grammar=BODY) if name == "format" else SamplingParams()
    request = ChatRequest((), params, tools=TOOLS, tool_choice=CHOICES[name])
    dialect = Dialect(call_format=form, thinks=thinks)
    grammar = reply_grammar(dialect, MARKER_IDS if has_tokens else {}, request, is_thinking=False)
    right = ("weather", '{"city": "Bern"}')
    thought = "<think>\nhm\n</think>\n\n" if thinks else ""

    async def may_be(text: str) -> bool:
        return await accepts(grammar, text, has_tokens=has_tokens)

    assert await may_be(thought + calls(form, right))
    assert not await may_be(calls(form, ("nothing", "{}")))
    assert not await may_be(calls(form, ("weather", '{"city": 1}')))
    assert not await may_be(calls(form, right) + " and so on")
    assert await may_be(calls(form, right, right)) == CHOICES[name].is_parallel
    assert await may_be(calls(form, ("clock", "{}"))) == (CHOICES[name].names is None)
    assert await may_be('{"name": "Ann"}') == (name == "format")


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("form", FORMATS)
async def test_auto_is_text_or_calls_that_match(form: CallFormat, thinks: bool, has_tokens: bool) -> None:
    dialect = Dialect(call_format=form, thinks=thinks)
    grammar = grammar_of(dialect, ToolChoice(), has_tokens=has_tokens)

    async def may_be(text: str) -> bool:
        return await accepts(grammar, text, has_tokens=has_tokens)

    right, other = ("weather", '{"city": "Bern"}'), ("clock", "{}")
    before = "" if form == "llama3" else "Let me see.\n"
    doubt = "hm?" if has_tokens else "<tool_call> or [TOOL_CALLS]?"
    for thought in ("", *([f"<think>\n{doubt}\n</think>\n\n"] if thinks else [])):
        assert await may_be(thought + "It is a <b>fine</b> day [1] {2} \u00e9.\n")
        assert await may_be(thought + '{"name": "Ann"}')
        assert await may_be(thought + before + calls(form, right))
        assert await may_be(thought + before + calls(form, right, other))
        assert not await may_be(thought + before + calls(form, ("weather", '{"city": 1}')))
        assert not await may_be(thought + before + calls(form, ("nothing", "{}"))) or form == "llama3"
    if form == "llama3":
        assert await may_be("<|python_tag|>" + calls(form, right))
        assert await may_be('{"type": "function", "name": "weather", "parameters": {"city": "Bern"}}')


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("form", FORMATS)
async def test_only_what_is_allowed_is_called(form: CallFormat, has_tokens: bool) -> None:
    """The arguments of tools that are not strict are any object."""
    choice = ToolChoice("auto", ("weather",))
    grammar = grammar_of(Dialect(call_format=form), choice, tools=LOOSE, has_tokens=has_tokens)

    async def may_be(*made: tuple[str, str]) -> bool:
        return await accepts(grammar, calls(form, *made), has_tokens=has_tokens)

    assert await accepts(grammar, "A fine day.", has_tokens=has_tokens)
    assert await may_be(("weather", '{"town": [1, {"a": null}]}'))
    assert not await may_be(("weather", "[]"))
    assert not await may_be(("clock", "{}"))
    assert not await may_be(("weather", "{}"), ("clock", "{}"))


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_bound_that_need_not_be(form: CallFormat) -> None:
    assert grammar_of(Dialect(call_format=form, thinks=True), ToolChoice(), tools=LOOSE) is None
    assert grammar_of(Dialect(call_format=form, thinks=True), ToolChoice(), tools=()) is None


@pytest.mark.parametrize("has_tokens", [False, True])
@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice(), ToolChoice("none")])
async def test_a_prompt_that_opened_the_thoughts(choice: ToolChoice, has_tokens: bool) -> None:
    grammar = grammar_of(Dialect(thinks=True), choice, has_tokens=has_tokens, is_thinking=True)
    call = calls("hermes", ("weather", '{"city": "Bern"}'))
    thought = f"What about {'this' if has_tokens else call}?\n</think>\n\n"
    assert await accepts(grammar, thought + call, has_tokens=has_tokens) == (choice.mode != "none")
    assert await accepts(grammar, thought + "Fine.", has_tokens=has_tokens) == (choice.mode != "required")
    assert not await accepts(grammar, call + "\n</think>\n\n" + call + "!", has_tokens=has_tokens)
    assert not await accepts(grammar, thought + call + "</think>" + call, has_tokens=has_tokens)


@pytest.mark.parametrize("is_thinking", [False, True])
@pytest.mark.parametrize("choice", [ToolChoice("none"), ToolChoice("auto")])
async def test_a_format_after_thoughts(choice: ToolChoice, is_thinking: bool) -> None:
    request = ChatRequest((), SamplingParams(grammar=BODY), tools=LOOSE, tool_choice=choice)
    for tokens in (False, True):
        ids = MARKER_IDS if tokens else {}
        grammar = reply_grammar(Dialect(thinks=True), ids, request, is_thinking=is_thinking)
        opened = "" if is_thinking else "<think>"
        assert await accepts(grammar, f'{opened}hm {{}}</think>\n{{"name": "Ann"}}', has_tokens=tokens)
        assert not await accepts(grammar, f"{opened}hm</think>Ann", has_tokens=tokens)


@pytest.mark.parametrize("form", FORMATS)
async def test_drafts_of_markers_leave_no_trace(form: CallFormat) -> None:
    """What is forced at the beginning has the marker in it: it is computed as drafts, and may be taken back."""
    grammar = grammar_of(Dialect(call_format=form), CHOICES["named"], has_tokens=True)
    assert grammar is not None
    compiled = await grammars(TOKENS).compile(grammar)
    drafted, plain = compiled.constraint(), compiled.constraint()
    forced = drafted.forced(20)
    assert len(drafted.masks(forced)) == 1 + len(forced) and drafted.error is None
    for token_id in forced:
        assert drafted.masks(forced[:1])[0] == plain.masks(())[0]
        drafted.accept(token_id)
        plain.accept(token_id)
        forced = forced[1:]


async def test_a_tokenizer_without_grammars_can_do_without_where_nothing_is_demanded(unigram_folder: Path) -> None:
    service = await open_fake_service(tokenizer=Tokenizer.load(unigram_folder))
    question = (Message("user", "a"),)

    def asking(choice: ToolChoice, tools: tuple[Tool, ...] = LOOSE) -> ChatRequest:
        return ChatRequest(question, SamplingParams(max_tokens=1), tools=tools, tool_choice=choice)

    for choice in (ToolChoice("none"), ToolChoice("auto", ("weather",))):
        (await service.start(asking(choice))).close()
    for demanding in (asking(REQUIRED), asking(ToolChoice(), TOOLS)):
        with pytest.raises(InvalidRequest, match="tokenizer"):
            await service.start(demanding)
    await service.close()


FRAGMENTS = [
    "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<think>", "</think>", "{", "}", "[", "]", ", ",
    '"name"', ": ", '"weather"', '"clock"', '"arguments": {}', '"parameters": {}', '{"city": "x"}', "\n", " ", "text",
    *(calls(form, ("weather", '{"city": "x"}')) for form in FORMATS), calls("llama3", ("weather", "{}")),
    '{"name": "clock", "arguments": {}}', '{"type": "function", "name": "weather", "parameters": {"city": "x"}}',
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join)


async def said(dialect: Dialect, choice: ToolChoice, text: str) -> Reading | None:
    """What the parser makes of a reply. None for one that cannot be."""
    for has_tokens in (False, True):
        if await accepts(grammar_of(dialect, choice, has_tokens=has_tokens), text, has_tokens=has_tokens):
            return read(dialect, text, names=[tool.name for tool in TOOLS])
    return None


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.booleans(), TEXTS)
async def test_where_nothing_may_be_called_no_call_is_read(form: CallFormat, thinks: bool, text: str) -> None:
    reading = await said(Dialect(call_format=form, thinks=thinks), ToolChoice("none"), text)
    assert reading is None or not reading.calls


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), st.booleans(), TEXTS)
async def test_every_call_that_is_read_matches(form: CallFormat, thinks: bool, text: str) -> None:
    reading = await said(Dialect(call_format=form, thinks=thinks), ToolChoice(), text)
    for name, arguments in reading.calls if reading else ():
        schema = CITY if name == "weather" else {"maxProperties": 0}
        assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(arguments)), (name, arguments)


@pytest.mark.parametrize(
    ("tools", "asked", "param", "keyword"),
    [
        ((Tool("f", parameters={"not": {}}, strict=True, param="tools[0].x"),), None, "tools[0].x", "not"),
        ((*LOOSE, Tool("f", parameters={"if": {}}, strict=True, param="tools[2].x")), BODY, "tools[2].x", "if"),
        (TOOLS, Grammar("json_schema", '{"uniqueItems": true}', "response_format"), "response_format", "uniqueItems"),
        ((Tool("f", parameters={"not": {}}, param="tools[0].x"),), BODY, None, ""),
    ],
)
async def test_the_schema_that_is_to_blame_is_named(
    tools: tuple[Tool, ...], asked: Grammar | None, param: str | None, keyword: str
) -> None:
    grammar = reply_grammar(
        Dialect(), {}, ChatRequest((), SamplingParams(grammar=asked), tools=tools), is_thinking=False
    )
    assert grammar is not None
    if param is None:
        await grammars(TEXT).compile(grammar)
    else:
        with pytest.raises(InvalidRequest, match=keyword) as caught:
            await grammars(TEXT).compile(grammar)
        assert caught.value.param == param
