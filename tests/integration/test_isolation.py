"""Isolation (promise P4): what a stranger has cached and what nobody has cost another tenant the same work.

Time is noisy, work is not: steps, computed tokens, encoded texts and questions to Redis are counted. A test of times
would either fail by chance or pass by being lax.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from sessions.errors import Overloaded
from sessions.grammar_lane import _Line
from sessions.service import ChatService
from sessions.types import (
    Breakpoint,
    ChatRequest,
    CompletionRequest,
    Grammar,
    Message,
    Part,
    SamplingParams,
    SharedPrompt,
    Tenant,
)
from tests.fakes import FakeRunner, open_fake_service, text_of

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
    text = await text_of(generation)
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


async def test_a_tenant_s_new_schemas_stand_in_its_own_line(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many bob sends, alice's do not find the line full."""
    lane = service.grammars._quick
    monkeypatch.setattr(lane, "_max_line", 1)
    lane._lines["bob"] = _Line(length=1)

    def asked(tenant: str) -> ChatRequest:
        params = SamplingParams(temperature=0, max_tokens=8, grammar=Grammar("json_schema", '{"const": 7}'))
        return replace(request("Hello.", tenant), params=params)

    with pytest.raises(Overloaded):
        await service.start(asked("bob"))
    assert (await work(service, asked("alice")))[1] == "7"


# -- content that the operator declared shared: it, and nothing else, is common to tenants --

DECLARED = "You are the assistant of a library. Books are lent for four weeks. " * 3
NUM_SHARED = (len("<system\n") + len(DECLARED) + len("<\n")) // 16 * 16
"""Tokens of its rendering, in whole blocks; a token is a byte, and `<` stands for a control token."""

Act = Callable[[ChatService, ChatRequest], Awaitable[object]]


async def chat(service: ChatService, asked: ChatRequest) -> object:
    return await work(service, asked)


async def warm(service: ChatService, asked: ChatRequest) -> object:
    return await service.warm(asked)


async def explain(service: ChatService, asked: ChatRequest) -> object:
    return await service.explain(asked)


async def list_entries(service: ChatService, asked: ChatRequest) -> object:
    return await service.cache.holdings(asked.tenant)


async def drop(service: ChatService, asked: ChatRequest) -> object:
    return await service.cache.drop(asked), await service.cache.drop_all(asked.tenant)


async def drop_the_shared_part_alone(service: ChatService, asked: ChatRequest) -> object:
    return await service.cache.drop(replace(asked, messages=asked.messages[:1]))


async def pin_and_unpin(service: ChatService, asked: ChatRequest) -> object:
    alone = replace(asked, messages=asked.messages[:1])
    return [await act(one) for one in (asked, alone) for act in (service.cache.pin, service.cache.unpin)]


ACTS = [chat, warm, explain, list_entries, drop, drop_the_shared_part_alone, pin_and_unpin]


@pytest.fixture
async def sharing() -> AsyncIterator[ChatService]:
    opened = await open_fake_service(
        num_blocks=512, max_model_len=2000, shared_prompts=[SharedPrompt((Message("system", DECLARED),))]
    )
    yield opened
    opened.engine.scheduler.check_integrity()
    await opened.close()


async def state(service: ChatService, tenant: str) -> object:
    """What a tenant has, but for when it was used."""
    holdings, num_tokens = await service.cache.holdings(Tenant(tenant))
    return [replace(holding, age_s=0, ttl_s=0) for holding in holdings], num_tokens


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("prompt", [SECRET, DECLARED], ids=["private", "shared"])
async def test_whatever_bob_does_alice_has_what_she_had(sharing: ChatService, act: Act, prompt: str) -> None:
    await work(sharing, request(prompt, "alice"))
    await sharing.cache.pin(request(prompt, "alice"))
    before = await state(sharing, "alice")
    await act(sharing, request(prompt, "bob"))
    assert await state(sharing, "alice") == before
    again, _ = await work(sharing, request(prompt, "alice"))
    assert again.computed_tokens <= 8, "one of the prompt, and the reply's"


@pytest.mark.parametrize("prompt", [SECRET, DECLARED], ids=["private", "shared"])
async def test_bob_finds_of_alice_s_what_is_declared_and_no_token_more(sharing: ChatService, prompt: str) -> None:
    num_shared = NUM_SHARED if prompt == DECLARED else 0
    _, reply = await work(sharing, request(prompt, "alice"))
    await work(sharing, request(prompt, "alice", reply=reply))
    asked = request(prompt, "bob", reply=reply)
    explained = await sharing.explain(asked)
    assert (explained.tiers.pool, explained.tiers.disk, explained.divergence) == (num_shared, 0, None)
    assert explained.kind == ("hit" if num_shared else "never_seen")
    assert await sharing.cache.holdings(Tenant("bob")) == ([], 0)
    warmed = await sharing.warm(replace(asked, messages=asked.messages[:1]))
    assert warmed.cached_tokens == num_shared
    got, _ = await work(sharing, asked)
    assert got.spliced == 0 and num_shared <= got.cached_tokens < len(prompt) + 20
    alice, _ = await sharing.cache.holdings(Tenant("alice"))
    bob, _ = await sharing.cache.holdings(Tenant("bob"))
    assert {holding.root for holding in alice}.isdisjoint(holding.root for holding in bob)
    assert {holding.num_declared_tokens for holding in (*alice, *bob)} == {num_shared}


async def test_what_bob_explains_is_the_same_whoever_had_the_shared_content(sharing: ChatService) -> None:
    """Alice's question after it, her reply, her tail: none of it changes a word of what bob is told."""
    await work(sharing, request(DECLARED, "alice"))
    after_the_same = await sharing.explain(request(DECLARED, "bob"))
    other = replace(request(DECLARED, "alice"), messages=(Message("system", DECLARED), Message("user", "Else? " * 30)))
    await work(sharing, other)
    assert await sharing.explain(request(DECLARED, "bob")) == after_the_same


async def test_after_shared_content_a_strangers_prompt_and_an_unknown_one_are_the_same_work(
    sharing: ChatService,
) -> None:
    def ask(text: str, tenant: str) -> ChatRequest:
        asked = request(DECLARED, tenant)
        return replace(asked, messages=(*asked.messages[:1], Message("user", text)))

    await work(sharing, ask(SECRET, "alice"))
    guessed, _ = await work(sharing, ask(SECRET, "bob"))
    unknown, _ = await work(sharing, ask(UNKNOWN, "carol"))
    assert guessed == unknown and guessed.cached_tokens == NUM_SHARED


async def test_a_salt_keeps_to_itself_what_is_declared_too(sharing: ChatService) -> None:
    await work(sharing, request(DECLARED, "alice"))
    salted, _ = await work(sharing, request(DECLARED, "alice", salt="one"))
    assert salted.cached_tokens == 0
    bob, _ = await work(sharing, request(DECLARED, "bob"))
    assert bob.cached_tokens == NUM_SHARED


async def test_a_completion_of_the_same_tokens_shares_what_a_chat_does(sharing: ChatService) -> None:
    await work(sharing, request(DECLARED, "alice"))
    ids = tuple((await sharing._prompter.prompt(request(DECLARED, "alice"))).token_ids)
    for tenant, salt, found in (("alice", None, len(ids) - 1), ("bob", None, NUM_SHARED), ("bob", "one", 0)):
        asked = CompletionRequest(
            (ids,), SamplingParams(temperature=0, max_tokens=1), 1, Tenant(tenant), salt, takes_control_tokens=True
        )
        generation = await sharing.start(asked)
        async for _ in generation:
            pass
        generation.close()
        assert generation.usage().cached_tokens == found, (tenant, salt)


async def test_only_what_the_operator_declared_is_ever_shared(sharing: ChatService) -> None:
    """Not what a client marks, warms, pins or keeps, and not the beginning of it that somebody else wrote."""
    point = Breakpoint(ttl_s=1800.0)
    marked = Message("system", SECRET, parts=(Part(0, len(SECRET), point),))
    asked = replace(request(SECRET, "alice"), messages=(marked, Message("user", "What is it?")))
    await sharing.warm(asked)
    await sharing.cache.pin(asked)
    bob, _ = await work(sharing, replace(asked, tenant=Tenant("bob")))
    assert bob.cached_tokens == 0
    prefixed, _ = await work(sharing, request("Well. " + DECLARED, "bob"))
    assert prefixed.cached_tokens < 16
    edited, _ = await work(sharing, request(DECLARED.replace("four", "five"), "carol"))
    assert edited.cached_tokens <= DECLARED.index("four") // 16 * 16 + 16


async def test_shared_content_counts_in_nobody_s_budget() -> None:
    service = await open_fake_service(
        num_blocks=512, budgets={"bob": 4}, shared_prompts=[SharedPrompt((Message("system", DECLARED),))]
    )
    try:
        for text in ("One?", "Two?"):
            asked = request(DECLARED, "bob")
            await work(service, replace(asked, messages=(*asked.messages[:1], Message("user", text * 40))))
        _, num_tokens = await service.cache.holdings(Tenant("bob"))
        assert 0 < num_tokens <= 4 * 16
        alice, _ = await work(service, request(DECLARED, "alice"))
        assert alice.cached_tokens == NUM_SHARED
    finally:
        await service.close()
