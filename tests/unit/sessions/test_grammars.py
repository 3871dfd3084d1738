"""Grammars: what compiles is obeyed to the letter, what does not is refused by its keyword."""

import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer

from sessions.engine.masks import compute_masks
from sessions.engine.request import Request
from sessions.engine.sampler import sample
from sessions.engine.schedule import Draw
from sessions.errors import InvalidRequest
from sessions.grammar_compiler import embedded_json
from sessions.grammars import MAX_PROTOTYPES, MAX_SOURCE_CHARACTERS, GrammarConstraint, Grammars
from sessions.hashing import HashChain
from sessions.tokenizer import Tokenizer
from sessions.types import BlockHash, Grammar, RequestId, SamplingParams
from tests.fakes import byte_tokenizer
from tests.schemas import NAMED, closed

MAX_TOKENS = 700
FORMATS = jsonschema.FormatChecker(("date", "email", "ipv4", "uuid"))
TOKENIZER = byte_tokenizer()
EOS = next(iter(TOKENIZER.eos_token_ids))


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    made = Grammars(TOKENIZER)
    yield made
    made.close()


def of_schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def legal(constraint: GrammarConstraint, *drafts: int) -> set[int]:
    """What may follow the output and `drafts`."""
    bits = np.unpackbits(np.frombuffer(constraint.masks(drafts)[-1], np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def generate(constraint: GrammarConstraint, params: SamplingParams, seed: int) -> Request:
    """Draw from random logits, as the runner would, until the request ends. Ends of strings and objects are likely."""
    chain = HashChain(BlockHash(b"r" * 16), 16)
    request = Request(
        RequestId("r"), [1], chain, params, MAX_TOKENS, TOKENIZER.eos_token_ids, seed, constraint=constraint
    )
    noise = torch.Generator().manual_seed(seed)
    ends = TOKENIZER.encode_text('"}]', scope="")
    while request.finish_reason() is None:
        logits = torch.randn(1, TOKENIZER.vocab_size, generator=noise)
        logits[:, ends] += 3
        draws = [Draw(0, request, ())]
        request.append(sample(logits, draws, compute_masks(draws))[0])
        assert request.error is None
    return request


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMED)
async def test_every_schema_is_obeyed(grammars: Grammars, name: str, temperature: float) -> None:
    validator = jsonschema.Draft202012Validator(NAMED[name], format_checker=FORMATS)
    compiled = await grammars.compile(of_schema(NAMED[name]))
    for seed in range(3):
        request = generate(compiled.constraint(), SamplingParams(temperature=temperature), seed)
        text = TOKENIZER.decode(request.token_ids[1:])
        assert request.finish_reason() == "stop", text
        validator.validate(json.loads(text))


async def test_any_object_is_one(grammars: Grammars) -> None:
    compiled = await grammars.compile(of_schema({"type": "object"}))
    for seed in range(20):
        request = generate(compiled.constraint(), SamplingParams(), seed)
        if request.finish_reason() == "stop":
            assert isinstance(json.loads(TOKENIZER.decode(request.token_ids[1:])), dict)


async def test_neither_bias_nor_penalties_make_a_token_legal(grammars: Grammars) -> None:
    compiled = await grammars.compile(of_schema({"enum": ["yes", "no"]}))
    letters = TOKENIZER.encode_text("{x", scope="")
    params = SamplingParams(
        logit_bias=((EOS, 100.0), *((letter, 100.0) for letter in letters)), presence_penalty=-2, frequency_penalty=-2
    )
    for seed in range(5):
        text = TOKENIZER.decode(generate(compiled.constraint(), params, seed).token_ids[1:])
        assert text in ('"yes"', '"no"')


async def test_the_end_of_the_reply_is_legal_exactly_where_the_output_matches(grammars: Grammars) -> None:
    constraint = (await grammars.compile(of_schema({"type": "integer", "minimum": 0, "maximum": 99}))).constraint()
    assert EOS not in legal(constraint)
    constraint.accept(*TOKENIZER.encode_text("7", scope=""))
    assert EOS in legal(constraint) and not constraint.is_complete
    constraint.accept(*TOKENIZER.encode_text("0", scope=""))
    assert legal(constraint) == {EOS} and constraint.is_complete


async def test_an_eos_under_a_grammar_ends_a_reply_that_ignores_eos(grammars: Grammars) -> None:
    compiled = await grammars.compile(of_schema({"type": "integer"}))
    params = SamplingParams(ignore_eos=True, logit_bias=((EOS, 100.0),))
    request = generate(compiled.constraint(), params, 1)
    assert request.finish_reason() == "stop" and request.num_output_tokens < 10


async def test_control_tokens_are_text_to_no_schema(grammars: Grammars) -> None:
    constraint = (await grammars.compile(of_schema({"type": "string"}))).constraint()
    constraint.accept(*TOKENIZER.encode_text('"', scope=""))
    assert len(legal(constraint)) > 100
    assert not legal(constraint) & TOKENIZER.control_ids


async def test_a_control_token_that_is_not_special_is_no_text_either(chatml_folder: Path, tmp_path: Path) -> None:
    """`[CALL]` is an added token like any other to the tokenizer; only a grammar that names it lets it be drawn."""
    hf = AutoTokenizer.from_pretrained(chatml_folder)
    hf.add_tokens([AddedToken("[CALL]")])
    hf.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = Tokenizer.load(tmp_path)
    call = hf.convert_tokens_to_ids("[CALL]")
    assert call in tokenizer.control_ids
    grammars = Grammars(tokenizer)
    inside = (await grammars.compile(of_schema({"type": "string"}))).constraint()
    inside.accept(*tokenizer.encode_text('"', scope=""))
    assert not legal(inside) & tokenizer.control_ids
    named = (
        await grammars.compile(Grammar("lark", f"start: <[{call}]> {embedded_json(of_schema(closed()))}"))
    ).constraint()
    assert legal(named) == {call}
    grammars.close()


async def test_drafts_leave_no_trace(grammars: Grammars) -> None:
    compiled = await grammars.compile(of_schema({"type": "array", "items": {"enum": ["ab", "ac"]}, "maxItems": 2}))
    drafted, plain = compiled.constraint(), compiled.constraint()
    for token in TOKENIZER.encode_text('["ab", "ac"]', scope=""):
        rest = TOKENIZER.encode_text('["ab", "ac"]', scope="")
        drafts = rest[: drafted.num_legal(rest)]
        masks = drafted.masks(drafts)
        assert len(masks) == 1 + len(drafts)
        assert masks[0] == plain.masks(())[0]
        drafted.accept(token)
        plain.accept(token)
    assert drafted.is_complete and plain.is_complete
    assert drafted.masks(()) == plain.masks(())


async def test_masks_after_drafts_are_those_after_the_tokens(grammars: Grammars) -> None:
    compiled = await grammars.compile(of_schema(closed(name={"type": "string", "maxLength": 3})))
    ids = TOKENIZER.encode_text('{"name": "xy', scope="")
    at_once = compiled.constraint().masks(ids)
    step_by_step = compiled.constraint()
    for index, token in enumerate(ids):
        assert at_once[index] == step_by_step.masks(())[0], index
        step_by_step.accept(token)
    assert at_once[-1] == step_by_step.masks(())[0]


async def test_what_is_forced_is_all_that_is_legal(grammars: Grammars) -> None:
    """To one that was not asked what is forced, and so looks at each mask, too."""
    compiled = await grammars.compile(of_schema(closed(name={"type": "boolean"}, age={"const": 7})))
    constraint, plain = compiled.constraint(), compiled.constraint()
    num_forced = 0
    while not constraint.is_complete:
        forced = constraint.forced(64)
        for index, token in enumerate(forced):
            assert legal(plain, *forced[:index]) == {token}
        for length in range(len(forced) + 1):
            assert constraint.masks(forced[:length]) == plain.masks(forced[:length])
        num_forced += len(forced)
        for token in forced or [min(legal(constraint))]:
            constraint.accept(token)
            plain.accept(token)
            assert constraint.masks(()) == plain.masks(())
    assert num_forced > 20
    assert constraint.forced(64) == (), "an end of the reply is drawn, not forced"


async def test_what_is_forced_is_looked_for_once(grammars: Grammars) -> None:
    """All of it is tokenized each time: a step that did so would cost as much as the text is long."""
    constraint = (await grammars.compile(of_schema({"const": "x" * 50_000}))).constraint()
    text = TOKENIZER.encode_text('"' + "x" * 50_000 + '"', scope="")
    began = time.process_time()
    for start in range(0, 20_000, 64):
        drafts = constraint.forced(64)
        assert list(drafts) == text[start : start + 64]
        assert len(constraint.masks(drafts)) == 65
        for token in drafts:
            constraint.accept(token)
    assert time.process_time() - began < 2, "20 masks would have taken as long"
    constraint.accept(EOS)
    assert constraint.error is not None, "what is not forced is no more legal than before"


async def test_drafts_are_cut_at_the_first_illegal_one(grammars: Grammars) -> None:
    constraint = (await grammars.compile(of_schema({"const": "abc"}))).constraint()
    assert constraint.num_legal(TOKENIZER.encode_text('"abX', scope="")) == 3
    assert constraint.num_legal((*TOKENIZER.encode_text('"abc"', scope=""), EOS)) == 5
    assert constraint.forced(0) == ()


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"if": {}, "then": {}}, '"if"'),
        ({"type": "wrong"}, "type"),
        ({"type": "string", "pattern": "(("}, "pattern: unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "pattern: look-around"),
        ({"type": "string", "format": "poem"}, "format: poem"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"$ref": "#/$defs/nowhere"}, "$ref"),
        ({"$ref": "https://example.com/schema"}, "$ref"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"properties": []}, "properties"),
        ({"enum": []}, "empty"),
        ({"required": "a"}, "required"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$ref: it leads round"),
        ({"type": "string", "pattern": "^((a{1000}){1000}){1000}$"}, "pattern: no value is shorter"),
        ({"type": "integer", "multipleOf": 1000003}, "multipleOf"),
        ({"type": "object", "properties": {f"k{index}": {"type": "string"} for index in range(600)}}, "properties"),
        ({"enum": ["x" * MAX_SOURCE_CHARACTERS]}, "characters"),
    ],
)
async def test_a_schema_that_cannot_be_compiled_is_refused_by_its_keyword(
    grammars: Grammars, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await grammars.compile(replace(of_schema(schema), param="response_format.json_schema.schema"))
    assert refused.value.param == "response_format.json_schema.schema"
    assert refused.value.code == "invalid_value"
    assert named in refused.value.message
    assert len(refused.value.message) < 500 and "\n" not in refused.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#n", "$defs": {"a": {"$anchor": "n", "type": "integer"}}},
        {"$id": "u:v", "$ref": "u:v#n", "$defs": {"a": {"$anchor": "n", "type": "integer"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}, "b": {"const": {"$id": "u:v"}}}},
        {"$id": "u:v", "$ref": "#/$defs/a", "default": {"$id": "u:v"}, "$defs": {"a": {"type": "integer"}}},
    ],
)
async def test_a_reference_leads_where_its_bounds_were_told(grammars: Grammars, schema: dict[str, Any]) -> None:
    drawn = generate((await grammars.compile(of_schema(schema))).constraint(), SamplingParams(), 1)
    assert isinstance(json.loads(TOKENIZER.decode(drawn.token_ids[1:])), int)


async def test_a_schema_cannot_switch_what_is_the_servers(grammars: Grammars) -> None:
    schema = {**closed(a={"const": 1}), "x-guidance": {"whitespace_pattern": "\\n{5}", "item_separator": ";"}}
    compiled = await grammars.compile(of_schema(schema))
    assert TOKENIZER.decode(generate(compiled.constraint(), SamplingParams(), 1).token_ids[1:]) == '{"a": 1}'
    with pytest.raises(InvalidRequest, match='"not"'):
        await grammars.compile(of_schema({"not": {}, "x-guidance": {"lenient": True}}))


async def test_only_the_latest_grammars_are_kept(grammars: Grammars) -> None:
    def numbered(number: int) -> Grammar:
        return of_schema({"const": number})

    first = await grammars.compile(numbered(0))
    again = await grammars.compile(replace(numbered(0), param="text.format.schema"))
    assert again._prototype is first._prototype, "the same grammar is compiled once, wherever it stood"
    for number in range(1, MAX_PROTOTYPES + 1):
        await grammars.compile(numbered(number))
    assert len(grammars._prototypes) == MAX_PROTOTYPES
    assert numbered(0) not in grammars._prototypes
    assert TOKENIZER.decode(generate(first.constraint(), SamplingParams(), 1).token_ids[1:]) == "0"


async def test_a_chain_of_references_needs_no_more_stack_than_there_is(grammars: Grammars) -> None:
    """llguidance recurses along it: on an ordinary stack this ends the process."""
    links = {f"a{n}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}} for n in range(1600)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**links, "a1600": {"type": "null"}}}
    assert not (await grammars.compile(of_schema(schema))).constraint().is_complete


async def test_a_grammar_that_becomes_too_complex_ends_its_request_with_an_error(grammars: Grammars) -> None:
    """Never with a token that nothing allowed."""
    wide = {"type": "object", "properties": {f"k{index}": {"type": "string"} for index in range(2500)}}
    constraint = (await grammars.compile(of_schema({"anyOf": [{"type": "null"}, wide]}))).constraint()
    constraint.accept(*TOKENIZER.encode_text("{", scope=""))
    constraint.masks(())
    assert constraint.error is not None and "items" in constraint.error.message
    assert (constraint.error.code, constraint.error.param) == ("grammar_too_complex", "response_format")
    assert not constraint.is_complete


@pytest.mark.parametrize("folder", ["chatml_folder", "mistral_folder", "phi_folder", "base_folder", "smollm2_folder"])
async def test_vocabularies_of_all_kinds_obey(folder: str, request: pytest.FixtureRequest) -> None:
    """Byte-level and metaspace with byte fallback, with an end of reply and without one."""
    tokenizer = Tokenizer.load(request.getfixturevalue(folder))
    grammars = Grammars(tokenizer)
    schema = closed(**{"名 前": {"enum": ["東京 é", "a b"]}})
    constraint = (await grammars.compile(of_schema(schema))).constraint()
    drawn, token_ids = random.Random(1), []
    while not constraint.is_complete:
        token_ids.append(drawn.choice(sorted(legal(constraint))))
        constraint.accept(token_ids[-1])
    assert json.loads(tokenizer.decode(token_ids)) in ({"名 前": "東京 é"}, {"名 前": "a b"})
    grammars.close()


async def test_a_tokenizer_that_llguidance_cannot_read_has_no_grammars(unigram_folder: Path) -> None:
    """Its requests are refused; the server starts."""
    grammars = Grammars(Tokenizer.load(unigram_folder))
    with pytest.raises(InvalidRequest, match="tokenizer"):
        await grammars.compile(of_schema({"type": "object"}))
    grammars.close()


@pytest.mark.parametrize("folder", ["chatml_folder", "mistral_folder", "smollm2_folder"])
async def test_constants_that_read_like_control_tokens_are_text(folder: str, request: pytest.FixtureRequest) -> None:
    """Forced or drawn, in keys, constants and patterns."""
    tokenizer = Tokenizer.load(request.getfixturevalue(folder))
    grammars = Grammars(tokenizer)
    said = "".join(map(tokenizer.token_bytes.name, sorted(tokenizer.control_ids)[:4]))
    schema = closed(**{said: {"const": f"a{said}"}, "b": {"enum": [f"{said}1", f"{said}2"]}})
    constraint = (await grammars.compile(of_schema(schema))).constraint()
    token_ids: list[int] = []
    while not constraint.is_complete:
        for token_id in constraint.forced(8) or [max(legal(constraint))]:
            token_ids.append(token_id)
            constraint.accept(token_id)
        assert constraint.error is None
    assert json.loads(tokenizer.decode(token_ids))[said] == f"a{said}"
    assert not tokenizer.control_ids & set(token_ids)
    grammars.close()
