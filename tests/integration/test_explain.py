"""Each class of miss, really caused, and what is said of it. All is real but the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions import explainer
from sessions.explain import volatile
from sessions.parts import IndexOptions
from sessions.reports import Explanation
from sessions.service import ChatService
from sessions.tokenizer import Tokenizer
from sessions.types import ChatRequest, Message, SamplingParams, SharedPrompt, Tenant, Tool
from tests.fakes import ROOT_FIELDS, byte_tokenizer, open_fake_service, say
from tests.integration.index.index_servers import ValkeyServer, eventually

SYSTEM = "You are the assistant of a library. Today is Tuesday. " + "Books are lent for four weeks. " * 8
LONG = "".join(f"{number:04d} bottles. " for number in range(60))
GREEDY = SamplingParams(temperature=0, max_tokens=6)


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[ChatService]:
    opened = await open_fake_service(**({"num_blocks": 256} | options))
    try:
        yield opened
    finally:
        await opened.close()


def request(*contents: str, system: str = SYSTEM, **more: Any) -> ChatRequest:
    roles = ("user", "assistant")
    turns = [Message(roles[at % 2], content) for at, content in enumerate(contents)]  # type: ignore[arg-type]
    return ChatRequest(messages=(Message("system", system), *turns), params=GREEDY, **more)


async def cached(service: ChatService, asked: ChatRequest) -> int:
    generation = await service.start(asked)
    async for _ in generation:
        pass
    generation.close()
    return generation.usage().cached_tokens


async def explained(service: ChatService, asked: ChatRequest) -> Explanation:
    """And what is said to be found is what a request finds."""
    found = await service.explain(asked)
    assert await cached(service, asked) == found.tiers.held
    return found


async def test_never_seen() -> None:
    async with service() as one:
        found = await explained(one, request("One?"))
        assert (found.kind, found.tiers.pool, found.missed_tokens) == ("never_seen", 0, found.num_prompt_tokens)


async def test_hit_when_sent_again_and_when_it_goes_on() -> None:
    async with service() as one:
        reply = await say(one, request("One?"))
        again = await explained(one, request("One?"))
        assert (again.kind, again.missed_tokens, again.advice) == ("hit", 0, "")
        assert (await explained(one, request("One?", reply, "Two?"))).kind == "hit"


async def test_diverged_at_the_character_that_was_edited() -> None:
    async with service() as one:
        await say(one, request("One?"))
        at = SYSTEM.index("Tuesday")
        found = await explained(one, request("One?", system=SYSTEM.replace("Tuesday", "Sunday")))
        where = found.divergence
        assert found.kind == "diverged" and where is not None
        assert (where.param, where.offset) == ("messages[0].content", at)
        assert where.before.endswith("Today is ")
        assert where.now.startswith("Sunday. ") and where.then.startswith("Tuesday.")
        assert where.token == found.tiers.pool == len("<system\n") + at
        assert f"date at character {at} of messages[0].content" in found.advice
        assert f"{found.num_prompt_tokens - where.token:,} tokens" in found.advice


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 17, 200])
async def test_one_character_anywhere(offset: int) -> None:
    async with service() as one:
        await say(one, request("One?"))
        edited = SYSTEM[:offset] + "#" + SYSTEM[offset + 1 :]
        where = (await explained(one, request("One?", system=edited))).divergence
        assert where is not None and (where.param, where.offset) == ("messages[0].content", offset)


async def test_both_sides_are_shown_as_they_are_written_control_tokens_too() -> None:
    """Or an excerpt that runs past the end of a message would look like another text."""
    async with service() as one:
        await say(one, request("Where is the atlas?"))
        where = (await explained(one, request("Where is the globe?"))).divergence
        assert where is not None
        assert where.then.removeprefix("atlas?")[:10] == where.now.removeprefix("globe?")[:10] == "<|im_end|>"


async def test_a_date_before_everything() -> None:
    async with service(tokenizer=tiny_template()) as one:
        await say(one, request("One?", system="1923. " + SYSTEM))
        found = await explained(one, request("One?", system="1824. " + SYSTEM))
        assert found.kind == "diverged" and found.divergence is not None
        assert found.divergence.param == "messages[0].content" and found.divergence.offset == 1
        assert found.tiers.pool == 2 and "A number at character 1" in found.advice
        assert (await explained(one, request("One?", system="1026 other words."))).kind == "never_seen"


def tiny_template() -> Tokenizer:
    """ChatML without its words: no two prompts share more than one token of the template's."""
    tokenizer = byte_tokenizer()

    def apply(messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool) -> str:
        text = "".join("<|im_start|>" + message["content"] + "<|im_end|>" for message in messages)
        return text + ("<|im_start|>" if add_generation_prompt else "")

    tokenizer.template = replace(tokenizer.template, apply=apply)
    return tokenizer


async def test_diverged_in_an_edited_reply() -> None:
    async with service() as one:
        reply = await say(one, request("One?"))
        await say(one, request("One?", reply, "Two?"))
        where = (await explained(one, request("One?", "Edited.", "Two?"))).divergence
        assert where is not None and where.param == "messages[2].content" and where.now.startswith("Edited.")


async def test_evicted_says_when_and_after_how_long() -> None:
    async with service(num_blocks=48) as one:
        await say(one, request("One?"))
        for number in range(4):
            await say(one, request(system=f"{number} " * 200))
        found = await explained(one, request("One?"))
        assert found.kind == found.lost_to == "evicted"
        assert found.lost_seconds_ago is not None and 0 <= found.lost_seconds_ago < 60
        assert found.lost_after_idle_s is not None and "--pool-size" in found.advice


async def test_expired_after_its_time_to_live_under_pressure() -> None:
    async with service(num_blocks=48) as one:
        await say(one, request("One?"))
        clock = one.engine.scheduler.holder._clock
        one.engine.scheduler.holder._clock = lambda: clock() + 3_600
        for number in range(2):
            await say(one, request(system=f"{number} " * 200))
        found = await explained(one, request("One?"))
        assert found.kind == found.lost_to == "expired"
        assert found.lost_after_idle_s is not None and found.lost_after_idle_s > 3_000


async def test_dropped() -> None:
    async with service() as one:
        await say(one, request("One?"))
        assert await one.cache.drop_all(Tenant()) > 0
        found = await explained(one, request("One?"))
        assert found.kind == found.lost_to == "dropped"


async def test_tools_changed() -> None:
    async with service() as one:
        tools = (Tool("lend", "lends a book"), Tool("find", "finds a book"))
        await say(one, request("One?", tools=tools))
        reordered = await explained(one, request("One?", tools=tools[::-1]))
        assert reordered.kind == "hit"
        found = await explained(one, request("One?", tools=(*tools, Tool("zip", "packs a book"))))
        assert found.kind == "tools_changed" and found.divergence is not None
        assert "tools stand before every message" in found.advice


@pytest.fixture
def valkey() -> Any:
    server = ValkeyServer()
    server.start()
    yield server
    server.kill()


async def test_restarted_and_redis_unavailable(valkey: ValkeyServer) -> None:
    index = IndexOptions("redis", valkey.url, timeout_ms=2000)
    async with service(index=index) as before:
        await eventually(lambda: before.index.state == "redis")
        reply = await say(before, request("One?"))
        await eventually(lambda: b":r:" in b"".join(valkey.command("KEYS", "*")))  # type: ignore[arg-type]
    async with service(index=index) as after:
        await eventually(lambda: after.index.state == "redis")
        found = await explained(after, request("One?", reply, "Two?"))
        assert found.kind == "restarted" and "--disk-size" in found.advice
        valkey.kill()
        await eventually(lambda: after.index.state == "down")
        assert (await explained(after, request("Else?", tenant=Tenant("new")))).kind == "redis_unavailable"


MODEL = {"weights": "other", "numerics": "other", "kv_dtype": "float16", "block_size": 32}
CHANGES = [*({name: value} for name, value in MODEL.items()), {"template": "other"}, {"tokenizer": "other"}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
async def test_model_and_template_changed(valkey: ValkeyServer, change: dict[str, Any]) -> None:
    index = IndexOptions("redis", valkey.url, timeout_ms=2000)
    shared = {"index": index, "shared_prompts": [SharedPrompt((Message("system", SYSTEM),))]}
    alice = {"tenant": Tenant("alice")}
    async with service(**shared) as before:
        await eventually(lambda: before.index.state == "redis")
        reply = await say(before, request("One?", **alice))
        await say(before, request("One?", cache_salt="salt", **alice))
        await eventually(lambda: marks(valkey) == 4)
    async with service(root_fields=replace(ROOT_FIELDS, **change), **shared) as after:
        await eventually(lambda: after.index.state == "redis")
        expected = "model_changed" if set(change) <= set(MODEL) else "template_changed"
        for asked in (request("One?", **alice), request("One?", reply, "Two?", **alice)):
            found = await after.explain(asked)
            assert (found.kind, found.lost_to, found.divergence) == (expected, None, None) and found.advice
        assert (await after.explain(request("One?", cache_salt="salt", **alice))).kind == expected
        for asked in (request("Else?", **alice), request("One?", tenant=Tenant("bob"))):
            assert (await after.explain(asked)).kind == "never_seen"
        await after.cache.drop_all(Tenant("alice"))
        await eventually(lambda: marks(valkey) == 2)
        assert (await after.explain(request("One?", **alice))).kind == "never_seen"


def marks(server: ValkeyServer) -> int:
    """Records of replies and marks of conversations."""
    return sum(b":r:" in key for key in server.command("KEYS", "*"))  # type: ignore[union-attr]


async def test_a_first_turn_that_another_process_answered_is_told_as_restarted(valkey: ValkeyServer) -> None:
    options: dict[str, Any] = {
        "index": IndexOptions("redis", valkey.url, timeout_ms=2000),
        "shared_prompts": [SharedPrompt((Message("system", SYSTEM),))],
    }
    async with service(**options) as one, service(**options) as two:
        await eventually(lambda: one.index.state == two.index.state == "redis")
        assert (await one.explain(request("One?"))).kind == "never_seen"
        await say(one, request("One?"))
        await eventually(lambda: marks(valkey) == 2)
        assert (await two.explain(request("One?"))).kind == "restarted"
        await say(two, request("Else?", tenant=Tenant("bob")))
        shared = await two.explain(request("One?"))
        assert shared.kind == "restarted" and shared.tiers.pool > 200, "of hers it has nothing but what is shared"
        assert (await two.explain(request("New?"))).kind == "hit", "all that is known of it"


async def test_another_tenant_hears_nothing_of_it() -> None:
    async with service() as one:
        await say(one, request("One?", tenant=Tenant("alice")))
        asked = request("One?", tenant=Tenant("bob"))
        assert await one.explain(asked) == await one.explain(replace(asked, tenant=Tenant("carol")))
        assert (await explained(one, asked)).kind == "never_seen"


async def test_a_reply_says_it_too() -> None:
    async with service() as one:
        await say(one, request("One?"))
        generation = await one.start(request("Two?", wants_explanation=True))
        generation.close()
        assert generation.report.explanation is not None
        assert generation.report.explanation.divergence is not None
        assert generation.report.explanation.divergence.is_last_message


async def test_explaining_runs_and_keeps_nothing() -> None:
    async with service() as one:
        await asyncio.gather(*(one.explain(request(f"{number}?")) for number in range(5)))
        stats = one.stats()
        assert (stats.num_steps, stats.kv_cache_cached, stats.prompt_tokens) == (0, 0, 0)


@pytest.mark.parametrize(
    ("now", "then", "kind"),
    [
        ("2026-11-24. You", "2026-11-23. You", "a date or time"),
        ("Sunday. You", "Tuesday. You", "a date"),
        ("a1b2c3d4-0000-4000-8000-000000000001 x", "ffffffff-0000-4000-8000-000000000001 x", "a UUID"),
        ("42 users", "43 users", "a number"),
        ("the same 42", "the same 42", None),
        ("words", "other words", None),
    ],
)
def test_what_tends_to_change(now: str, then: str, kind: str | None) -> None:
    assert volatile(now, then) == kind


@given(now=st.text(max_size=60), then=st.text(max_size=60))
def test_what_changes_is_the_same_both_ways_and_nothing_without_a_change(now: str, then: str) -> None:
    assert volatile(now, then) == volatile(then, now)
    assert volatile(now, now) is None


async def test_others_have_the_loop_while_many_long_prompts_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these shares more than the one before, so that every one must be read."""
    monkeypatch.setattr(explainer, "MAX_COMPARED_AT_ONCE", 600)
    async with service() as opened:
        for length in (640, 600, 560, 520):
            await say(opened, request("And now?", system=LONG[:length]))
        prompted = await opened._prompter.prompt(request("Hello.", system=LONG))
        num_turns = 0

        async def others() -> None:
            nonlocal num_turns
            while True:
                num_turns += 1
                await asyncio.sleep(0)

        running = asyncio.create_task(others())
        _, shared, _ = await opened._explainer._closest(prompted)
        running.cancel()
        assert 640 < shared < 640 + len("<|im_start|>system\n")
        assert num_turns >= 3
