"""Tool grammar: each one compiles, takes a right call, and refuses a wrong one."""

import json
from collections.abc import AsyncIterator

import pytest

from sessions.dialect import CallFormat, Dialect
from sessions.grammars import Grammars
from sessions.tool_grammar import reply_grammar
from sessions.types import ChatRequest, Grammar, SamplingParams, Tool, ToolChoice
from tests.fakes import byte_tokenizer

FORMATS: list[CallFormat] = ["hermes", "llama3", "mistral"]
TOKENIZER = byte_tokenizer()
EOS = next(iter(TOKENIZER.eos_token_ids))
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = (Tool("weather", parameters=CITY, strict=True), Tool("clock"))
FORMAT = {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}
BODY = Grammar("json_schema", json.dumps(FORMAT))
CHOICES = {
    "required": ToolChoice("required"),
    "named": ToolChoice("required", ("weather",), is_parallel=False),
    "allowed": ToolChoice("required", ("weather",)),
    "format": ToolChoice("auto"),
}


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    made = Grammars(TOKENIZER)
    yield made
    made.close()


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


async def accepts(grammars: Grammars, grammar: Grammar | None, text: str) -> bool:
    """Whether a reply may be `text` and end there."""
    assert grammar is not None
    constraint = (await grammars.compile(grammar)).constraint()
    token_ids = list(TOKENIZER.encode_text(text, scope=""))
    if constraint.num_legal(token_ids) < len(token_ids):
        return False
    for token_id in token_ids:
        constraint.accept(token_id)
    return constraint.is_complete or bool(constraint.masks(())[0][EOS // 8] >> EOS % 8 & 1)


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("form", FORMATS)
async def test_takes_right_calls_only(grammars: Grammars, form: CallFormat, name: str, thinks: bool) -> None:
    params = SamplingParams(grammar=BODY) if name == "format" else SamplingParams()
    request = ChatRequest((), params, tools=TOOLS, tool_choice=CHOICES[name])
    grammar = reply_grammar(Dialect(call_format=form, thinks=thinks), {}, request, is_thinking=False)
    right = ("weather", '{"city": "Bern"}')
    thought = "<think>\nhm\n</think>\n\n" if thinks else ""
    assert await accepts(grammars, grammar, thought + calls(form, right))
    assert not await accepts(grammars, grammar, calls(form, ("nothing", "{}")))
    assert not await accepts(grammars, grammar, calls(form, ("weather", '{"city": 1}')))
    assert not await accepts(grammars, grammar, calls(form, right) + " and so on")
    assert await accepts(grammars, grammar, calls(form, right, right)) == CHOICES[name].is_parallel
    assert await accepts(grammars, grammar, calls(form, ("clock", "{}"))) == (CHOICES[name].names is None)
    assert await accepts(grammars, grammar, '{"name": "Ann"}') == (name == "format")
