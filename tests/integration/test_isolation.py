"""Isolation (promise P4): what a stranger has cached and what nobody has cost another tenant the same work.

Time is noisy, work is not: steps, computed tokens, encoded texts and questions to Redis are counted. A test of times
would either fail by chance or pass by being lax.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from sessions.service import ChatService
from sessions.types import ChatRequest, Message, SamplingParams, Tenant
from tests.fakes import FakeRunner, open_fake_service

SECRET = "The password of the vault is swordfish. " * 8
UNKNOWN = "The passport of the rault is swordfist. " * 8
"""As long as the secret, and as different as it can be without being so."""


@dataclass(frozen=True)
class Work:
    """Everything that a request made the server do."""

    cached_tokens: int
    computed_tokens: int
    steps: int
    encoded_texts: int
    spliced: int
    lookups: int


@pytest.fixture
async def service() -> AsyncIterator[ChatService]:
    opened = await open_fake_service(num_blocks=512)
    yield opened
    await opened.close()


def request(text: str, tenant: str, *, reply: str | None = None, salt: str | None = None) -> ChatRequest:
    messages = [Message("system", text), Message("user", "What is it?")]
    if reply is not None:
        messages += [Message("assistant", reply), Message("user", "Again?")]
    params = SamplingParams(temperature=0, max_tokens=8)
    return ChatRequest(tuple(messages), params, tenant=Tenant(tenant), cache_salt=salt)


async def work(service: ChatService, asked: ChatRequest) -> tuple[Work, str]:
    runner = service.engine._runner
    assert isinstance(runner, FakeRunner)
    encoder = service._parts.tokenizer._encoder
    before = runner.num_computed_tokens, service.engine.num_steps, len(encoder._cache), service.stats().index_lookups
    generation = await service.start(asked)
    text = "".join([delta.text async for delta in generation])
    generation.close()
    after = runner.num_computed_tokens, service.engine.num_steps, len(encoder._cache), service.stats().index_lookups
    computed, steps, encoded, lookups = (now - then for now, then in zip(after, before, strict=True))
    cached, spliced = generation.usage().cached_tokens, generation.report.num_spliced
    return Work(cached, computed, steps, encoded, spliced, lookups), text


async def test_a_strangers_prefix_and_an_unknown_one_are_the_same_work(service: ChatService) -> None:
    _, reply = await work(service, request(SECRET, "alice"))
    await work(service, request(SECRET, "alice", reply=reply))
    mine, _ = await work(service, request(SECRET, "alice", reply=reply))
    assert mine.cached_tokens > len(SECRET) and mine.spliced == 1
    guessed, _ = await work(service, request(SECRET, "bob", reply=reply))
    unknown, _ = await work(service, request(UNKNOWN, "carol", reply=reply))
    assert guessed == unknown
    assert (guessed.cached_tokens, guessed.spliced) == (0, 0)


async def test_a_salt_is_a_tenant_of_its_own(service: ChatService) -> None:
    await work(service, request(SECRET, "alice", salt="one"))
    guessed, _ = await work(service, request(SECRET, "alice", salt="two"))
    unknown, _ = await work(service, request(UNKNOWN, "alice", salt="three"))
    assert guessed == unknown


async def test_explaining_tells_the_same_of_both(service: ChatService) -> None:
    await work(service, request(SECRET, "alice"))
    of_secret = await service.explain(request(SECRET, "bob"))
    of_unknown = await service.explain(request(UNKNOWN, "bob"))
    assert of_secret == replace(of_unknown, num_prompt_tokens=of_secret.num_prompt_tokens)


async def test_what_alice_holds_is_under_none_of_bob_s_roots(service: ChatService) -> None:
    await work(service, request(SECRET, "alice"))
    await work(service, request(SECRET, "bob"))
    alice, _ = await service.cache.holdings(Tenant("alice"))
    bob, _ = await service.cache.holdings(Tenant("bob"))
    assert {holding.root for holding in alice}.isdisjoint(holding.root for holding in bob)
    assert {holding.leaf_hash for holding in alice}.isdisjoint(holding.leaf_hash for holding in bob)


async def test_a_tenant_with_a_budget_keeps_no_more_and_pushes_nobody_out() -> None:
    service = await open_fake_service(num_blocks=512, budgets={"bob": 8})
    try:
        await work(service, request(SECRET, "alice"))
        for number in range(4):
            await work(service, request(f"{number} {UNKNOWN}", "bob"))
        _, alice = await service.cache.holdings(Tenant("alice"))
        _, bob = await service.cache.holdings(Tenant("bob"))
        assert alice > len(SECRET) and 0 < bob <= 8 * 16
    finally:
        await service.close()
