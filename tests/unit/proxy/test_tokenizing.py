"""Long texts are tokenized, told in pieces and decoded while the event loop goes on; too long ones are refused."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.tokenizer_schemas import MAX_PIECES, TokenizeBody
from proxy.tokenizing import tokenized
from sessions.errors import InvalidRequest
from sessions.service import ChatService
from sessions.texts import MAX_TOKENS
from sessions.types import Tenant
from tests.fakes import open_fake_service

TENANT = Tenant("default")
IDS = [104] * MAX_PIECES


@pytest.fixture
async def service() -> AsyncIterator[ChatService]:
    opened = await open_fake_service()
    yield opened
    await opened.close()


WORK: dict[str, Callable[[ChatService], Awaitable[Any]]] = {
    "pieces": lambda service: tokenized(TokenizeBody(with_pieces=True), IDS, service),
    "strings": lambda service: tokenized(TokenizeBody(return_token_strs=True), IDS, service),
    "decode": lambda service: service.texts.decode(IDS),
    "encode": lambda service: service.texts.encode("x" * MAX_PIECES, TENANT, with_prefix=False, param="content"),
}


@pytest.mark.parametrize("name", WORK)
async def test_the_loop_goes_on_meanwhile(service: ChatService, name: str) -> None:
    """Work that was done on the loop would be over before anything else had its turn."""
    work = asyncio.ensure_future(WORK[name](service))
    num_turns = 0
    while not work.done():
        await asyncio.sleep(0)
        num_turns += 1
    await work
    assert num_turns > 2


@pytest.mark.parametrize("asked", ["with_pieces", "return_token_strs"])
async def test_more_tokens_than_are_told_in_pieces_are_refused_by_name(service: ChatService, asked: str) -> None:
    body = TokenizeBody(**{asked: True})
    told = await tokenized(body, [104] * MAX_PIECES, service)
    assert told.count == MAX_PIECES
    with pytest.raises(InvalidRequest, match=str(MAX_PIECES)) as refused:
        await tokenized(body, [104] * (MAX_PIECES + 1), service)
    assert refused.value.param == asked
    whole = await tokenized(TokenizeBody(), [104] * (MAX_PIECES + 1), service)
    assert whole.count == MAX_PIECES + 1


async def test_more_tokens_than_are_encoded_at_once_are_refused_by_name(service: ChatService) -> None:
    with pytest.raises(InvalidRequest, match=str(MAX_TOKENS)) as refused:
        await service.texts.encode("x" * (MAX_TOKENS + 1), TENANT, with_prefix=False, param="content")
    assert refused.value.param == "content"
