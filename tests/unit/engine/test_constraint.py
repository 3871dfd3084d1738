"""Constrained requests in the engine: neighbours, drafts, preemption and failures change no token of theirs."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sessions.engine.masks import Masks, compute_masks
from sessions.engine.sampler import sample
from sessions.engine.schedule import Draw
from sessions.errors import InvalidRequest
from sessions.service import ChatService
from sessions.types import ChatRequest, Grammar, Message, SamplingParams
from tests.fakes import byte_tokenizer, open_fake_service
from tests.schemas import NAMED, closed
from tests.unit.engine.test_loop import request as request_named

TOKENIZER = byte_tokenizer()
PERSON = closed(
    name={"type": "string", "pattern": "^[a-z]{40,50}$"}, tags={"type": "array", "items": {"enum": ["a", "b"]}}
)


def asking(schema: dict[str, Any] | None, text: str = "hi", n: int = 1, **params: Any) -> ChatRequest:
    grammar = None if schema is None else Grammar("json_schema", json.dumps(schema))
    return ChatRequest((Message("user", text),), SamplingParams(grammar=grammar, **params), n=n)


async def answers(service: ChatService, request: ChatRequest) -> list[tuple[str, str | None]]:
    """Text and finish reason of every choice."""
    generation = await service.start(request)
    texts, reasons = [""] * request.n, [None] * request.n
    async for delta in generation:
        texts[delta.choice] += delta.text
        reasons[delta.choice] = delta.finish_reason or reasons[delta.choice]
    generation.close()
    return list(zip(texts, reasons, strict=True))


async def test_constrained_choices_are_the_same_alone_drafted_preempted_and_in_company() -> None:
    asked = [asking(PERSON, f"hello {index}", n=2, max_tokens=200) for index in range(4)]
    roomy = await open_fake_service(tokenizer=TOKENIZER, num_blocks=2000, block_size=4, max_num_draft_tokens=0)
    alone = [await answers(roomy, request) for request in asked]
    await roomy.close()
    tight = await open_fake_service(tokenizer=TOKENIZER, num_blocks=56, block_size=4, max_num_draft_tokens=5)
    generations = [await tight.start(request) for request in (*asked, asking(None, "free", max_tokens=100))]
    together = []
    for generation, request in zip(generations, asked, strict=False):
        texts = [""] * request.n
        async for delta in generation:
            texts[delta.choice] += delta.text
        together.append(texts)
    assert tight.stats().num_preemptions > 0
    for generation in generations:
        generation.close()
    await tight.close()
    assert together == [[text for text, _ in choices] for choices in alone]
    for choices in alone:
        for text, reason in choices:
            assert reason == "stop", text
            assert set(json.loads(text)) == {"name", "tags"}


async def test_what_a_grammar_forces_is_computed_in_few_steps() -> None:
    service = await open_fake_service(tokenizer=TOKENIZER, max_num_draft_tokens=0)
    ((text, _),) = await answers(service, asking(NAMED["many properties"]))
    assert len(json.loads(text)) == 30
    assert service.stats().num_steps < len(text) / 4, "a token of this vocabulary is a byte"
    assert service.stats().num_draft_tokens == 0, "nothing was guessed"
    await service.close()


@pytest.mark.parametrize("max_tokens", [1, 5, 9, 10])
async def test_what_max_tokens_cuts_is_a_beginning(max_tokens: int) -> None:
    """Forced tokens too: no more are said than were asked for."""
    service = await open_fake_service(tokenizer=TOKENIZER)
    whole = '{"a": true}'
    generation = await service.start(asking(closed(a={"const": True}), max_tokens=max_tokens))
    deltas = [delta async for delta in generation]
    assert "".join(delta.text for delta in deltas) == whole[:max_tokens]
    assert deltas[-1].finish_reason == "length"
    assert generation.usage().completion_tokens == max_tokens
    generation.close()
    await service.close()


async def test_a_reply_whose_last_token_completes_it_has_stopped() -> None:
    service = await open_fake_service(tokenizer=TOKENIZER)
    assert await answers(service, asking(closed(a={"const": True}), max_tokens=11)) == [('{"a": true}', "stop")]
    await service.close()


async def test_a_stop_string_ends_a_constrained_reply() -> None:
    service = await open_fake_service(tokenizer=TOKENIZER)
    assert await answers(service, asking(closed(a={"const": True}), stop=(": ",))) == [('{"a"', "stop")]
    await service.close()


async def test_a_prediction_helps_a_constrained_reply_and_changes_nothing() -> None:
    service = await open_fake_service(tokenizer=TOKENIZER, max_num_draft_tokens=5)
    ((text, _),) = plain = await answers(service, asking(PERSON, max_tokens=200))
    for prediction in (text, "x" * 50, text[:20] + "}" * 20):
        request = ChatRequest(asking(PERSON).messages, asking(PERSON, max_tokens=200).params, prediction=prediction)
        assert await answers(service, request) == plain
    assert service.stats().num_accepted_tokens > 0
    await service.close()


async def test_a_grammar_that_fails_under_way_ends_its_request_and_no_other() -> None:
    service = await open_fake_service(tokenizer=TOKENIZER, num_blocks=400, block_size=4)
    wide = {"type": "object", "properties": {f"k{index}": {"type": "string"} for index in range(2500)}}
    failing = {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "null"}, wide]}, "maxItems": 40}
    other = await service.start(asking(PERSON, max_tokens=200))
    with pytest.raises(InvalidRequest) as failed:
        await answers(service, asking(failing))
    assert failed.value.code == "grammar_too_complex"
    assert "".join([delta.text async for delta in other]).startswith('{"name": "')
    other.close()
    assert service.stats().kv_cache_usage == 0
    await service.close()


class Fixed:
    """A constraint whose masks say the same of every token."""

    is_complete = False
    error = None

    def __init__(self, *allowed: int) -> None:
        bits: npt.NDArray[np.uint8] = np.zeros(32, np.uint8)
        bits[list(allowed)] = 1
        self.mask = np.packbits(bits, bitorder="little").tobytes()

    def accept(self, token_id: int) -> None: ...

    def forced(self, limit: int) -> tuple[int, ...]:
        return ()

    def num_legal(self, token_ids: Any) -> int:
        return len(token_ids)

    def masks(self, drafts: Any) -> list[bytes]:
        return [self.mask] * (1 + len(drafts))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_apply_to_their_rows_and_to_ids_past_their_end(temperature: float) -> None:
    """A model's logits may be wider than its tokenizer's vocabulary, and narrower."""
    free, bound = request_named("free"), request_named("bound")
    free.params = bound.params = SamplingParams(temperature=temperature)
    bound.constraint = Fixed(3, 17)
    draws = [Draw(0, free, ()), Draw(1, bound, ()), Draw(1, bound, (3,)), Draw(2, free, ())]
    masks = compute_masks(draws)
    assert masks is not None and masks.rows == [1, 2] and masks.forbidden.shape == (2, 32)
    for width in (40, 20):
        logits = torch.zeros(4, width)
        logits[:, width - 1] = 50.0
        logits[:, 17] = 20.0
        assert sample(logits, draws, masks) == [width - 1, 17, 17, width - 1]
    assert compute_masks([Draw(0, free, ())]) is None


def test_a_filtered_draw_is_legal() -> None:
    bound = request_named("bound")
    bound.params = SamplingParams(temperature=2.0, top_k=3, top_p=0.9, min_p=0.2)
    draws = [Draw(0, bound, ())]
    assert sample(torch.arange(32.0)[None], draws, Masks([0], ~np.eye(1, 32, 9, dtype=np.bool_))) == [9]
