"""/v1/cache through the real client: what a tenant sees of its own cache and does to it, and nothing of another's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from pydantic import SecretStr

from tests.contract.conftest import RunningServer, running

KEYS = {"alice": "sk-alice", "bob": "sk-bob"}
SYSTEM = {"role": "system", "content": "You are the assistant of a library. " * 6}


def question(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


class Tenant:
    """One tenant's client."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client

    def chat(self, *messages: Any, **more: Any) -> Any:
        options = {"max_tokens": 4, "temperature": 0} | more
        return self._client.chat.completions.create(model="fake", messages=list(messages), **options)

    def cached(self, *messages: Any, **more: Any) -> int:
        details = self.chat(*messages, **more).usage.prompt_tokens_details
        return int(details.cached_tokens)

    def post(self, action: str, *messages: Any, **more: Any) -> Any:
        body = {"model": "fake", "messages": list(messages), **more}
        return self._client.post(f"/cache/{action}", body=body, cast_to=dict[str, Any])

    def entries(self) -> Any:
        return self._client.get("/cache", cast_to=dict[str, Any])

    def get(self, path: str) -> Any:
        return self._client.get(path, cast_to=dict[str, Any])

    def stats(self) -> Any:
        return self.get("/cache/stats")

    def drop(self, entry_id: str = "") -> int:
        path = f"/cache/{entry_id}" if entry_id else "/cache"
        return int(self._client.delete(path, cast_to=dict[str, Any])["tokens"])


@contextmanager
def tenants(engine: dict[str, int] | None = None, **settings: Any) -> Iterator[tuple[Tenant, Tenant, RunningServer]]:
    keys = SecretStr(",".join(f"{tenant}={key}" for tenant, key in KEYS.items()))
    with (
        running(engine, api_keys=keys, **settings) as server,
        server.client(api_key=KEYS["alice"]) as alice,
        server.client(api_key=KEYS["bob"]) as bob,
    ):
        yield Tenant(alice), Tenant(bob), server


def test_warming_computes_once_and_the_chat_pays_for_its_question_only() -> None:
    with tenants() as (alice, bob, server):
        warmed = alice.post("warm", SYSTEM)
        assert warmed["cached_tokens"] == 0 and warmed["cache_write_tokens"] == warmed["prompt_tokens"] > 200
        again = alice.post("warm", SYSTEM)
        assert again["cached_tokens"] == warmed["prompt_tokens"] - 1
        reply = alice.chat(SYSTEM, question("Where?"))
        assert reply.usage.prompt_tokens_details.cached_tokens == warmed["prompt_tokens"]
        assert bob.cached(SYSTEM, question("Where?")) == 0
        server.expect_idle()


def test_what_is_pinned_outlives_what_would_push_it_out() -> None:
    with tenants({"num_blocks": 64, "max_model_len": 480}) as (alice, _, server):
        warmed = alice.post("warm", SYSTEM)
        pinned = alice.post("pin", SYSTEM)["tokens"]
        assert warmed["prompt_tokens"] - 16 < pinned <= warmed["prompt_tokens"]
        assert alice.post("pin", SYSTEM)["tokens"] == pinned
        for number in range(6):
            alice.chat(question(f"{number} " * 150))
        assert alice.cached(SYSTEM, question("Where?")) >= pinned
        assert alice.post("unpin", SYSTEM) == {"object": "cache.unpinned", "tokens": pinned}
        assert alice.post("unpin", SYSTEM)["tokens"] == 0
        for number in range(6):
            alice.chat(question(f"{number} " * 150), extra_body={"anaphora": {"priority": "high"}})
        assert alice.cached(SYSTEM, question("Where?")) < pinned
        server.expect_idle()


def test_pinning_has_a_limit() -> None:
    with tenants({"num_blocks": 32, "max_model_len": 400}) as (alice, _, _):
        long = question("long " * 70)
        alice.post("warm", long)
        with pytest.raises(APIStatusError) as refusal:
            alice.post("pin", long)
        assert (refusal.value.status_code, refusal.value.code) == (400, "pin_limit_exceeded")


def test_entries_say_what_is_held() -> None:
    with tenants() as (alice, _, _):
        assert alice.entries()["data"] == []
        first = alice.chat(SYSTEM, question("One?"))
        alice.chat(SYSTEM, question("Two, and longer?"), extra_body={"prompt_cache_options": {"ttl": "30m"}})
        alice.post("pin", SYSTEM, question("One?"))
        entries = alice.entries()
        two, one = entries["data"]
        assert one["tokens"] == first.usage.prompt_tokens + first.usage.completion_tokens - 1
        assert 0 < one["shared_tokens"] == two["shared_tokens"] < one["tokens"] < two["tokens"]
        assert entries["tokens"] == one["tokens"] + two["tokens"] - one["shared_tokens"]
        assert 1700 < two["ttl_s"] <= 1800
        assert all(entry["tier"] == "pool" and len(entry["id"]) == 32 for entry in entries["data"])


def test_layout_says_what_a_token_takes_and_what_the_pool_has() -> None:
    with tenants({"num_blocks": 64, "block_size": 4}) as (alice, _, server):
        layout = alice.get("/cache/layout")
        assert (layout["block_size"], layout["pool_tokens"], layout["max_model_len"]) == (4, 256, 256)
        assert layout["bytes_per_block"] == 4 * layout["bytes_per_token"]
        assert layout["pool_bytes"] == 256 * layout["bytes_per_token"]
        assert layout["layers"] == [], "the fake model has none"
        with server.client(api_key="sk-nobody") as stranger, pytest.raises(APIStatusError) as refused:
            stranger.get("/cache/layout", cast_to=dict[str, Any])
        assert refused.value.status_code == 401


def test_stats_are_a_tenant_s_own() -> None:
    with tenants() as (alice, bob, _):
        nothing = {f"{tier}_{unit}": 0 for tier in ("pool", "host", "disk") for unit in ("tokens", "bytes")}
        nothing["pinned_tokens"] = 0
        assert alice.stats() == nothing | {"object": "cache.stats", "budget_bytes": None}
        alice.chat(SYSTEM, question("One?"))
        pinned = alice.post("pin", SYSTEM, question("One?"))["tokens"]
        stats, entries = alice.stats(), alice.entries()
        assert (stats["pool_tokens"], stats["pool_bytes"]) == (entries["tokens"], entries["bytes"])
        assert 0 < stats["pinned_tokens"] == pinned < stats["pool_tokens"]
        assert bob.stats() == nothing | {"object": "cache.stats", "budget_bytes": None}


def test_dropping_a_prefix_an_entry_and_everything() -> None:
    with tenants() as (alice, bob, _):
        for client in (alice, bob):
            client.chat(SYSTEM, question("One?"))
            client.chat(SYSTEM, question("Two?"))
        shared = alice.entries()["data"][0]["shared_tokens"]
        newest = alice.entries()["data"][0]
        assert alice.drop(newest["id"]) > 0
        assert shared <= alice.cached(SYSTEM, question("Two?")) < newest["tokens"]
        assert alice.post("drop", SYSTEM)["tokens"] > 0
        assert alice.cached(SYSTEM, question("One?")) < shared
        assert alice.drop() > 0
        assert alice.entries()["data"] == [] and alice.drop() == 0
        assert bob.cached(SYSTEM, question("One?")) > shared


Action = Callable[[Tenant], Any]


@pytest.mark.parametrize(
    "act",
    [
        lambda bob: bob.drop(),
        lambda bob: bob.post("drop", SYSTEM, question("One?")),
        lambda bob: bob.post("drop", SYSTEM),
        lambda bob: bob.post("unpin", SYSTEM, question("One?")),
        lambda bob: bob.post("pin", SYSTEM, question("One?")),
        lambda bob: bob.post("explain", SYSTEM, question("One?")),
        lambda bob: bob.post("warm", SYSTEM, question("One?")),
        lambda bob: bob.chat(SYSTEM, question("One?")),
    ],
)
def test_nothing_that_bob_does_touches_what_alice_has(act: Action) -> None:
    with tenants() as (alice, bob, _):
        reply = alice.chat(SYSTEM, question("One?"))
        alice.post("pin", SYSTEM, question("One?"))
        before = [{**entry, "age_s": 0, "ttl_s": 0} for entry in alice.entries()["data"]]
        assert bob.entries()["data"] == []
        act(bob)
        assert [{**entry, "age_s": 0, "ttl_s": 0} for entry in alice.entries()["data"]] == before
        assert alice.cached(SYSTEM, question("One?")) == reply.usage.prompt_tokens - 1


def test_bob_cannot_drop_list_or_have_explained_what_alice_has() -> None:
    with tenants() as (alice, bob, _):
        reply = alice.chat(SYSTEM, question("One?"))
        entry_id = alice.entries()["data"][0]["id"]
        assert bob.drop(entry_id) == 0
        explained = bob.post("explain", SYSTEM, question("One?"))
        assert explained["class"] == "never_seen" and not any(explained["tiers"].values())
        assert bob.post("explain", SYSTEM, question("Other?")) == explained | {
            key: value
            for key, value in bob.post("explain", SYSTEM, question("Other?")).items()
            if key in ("prompt_tokens", "missed_tokens", "prompt_cache_diagnostics")
        }
        assert bob.cached(SYSTEM, question("One?")) == 0
        assert alice.cached(SYSTEM, question("One?")) == reply.usage.prompt_tokens - 1


NUM_SHARED = (len("<system\n") + len(SYSTEM["content"]) + len("<\n")) // 16 * 16
"""Tokens of SYSTEM in whole blocks, where it is declared shared."""

SHARED_ACTS: dict[str, Action] = {
    "chat": lambda bob: bob.cached(SYSTEM, question("One?")),
    "warm": lambda bob: bob.post("warm", SYSTEM)["cached_tokens"],
    "explain": lambda bob: bob.post("explain", SYSTEM, question("One?"))["tiers"]["pool"],
    "list": lambda bob: bob.entries()["tokens"],
    "drop": lambda bob: bob.post("drop", SYSTEM)["tokens"] + bob.drop(),
    "pin": lambda bob: bob.post("pin", SYSTEM)["tokens"],
}
FINDS = {"chat": NUM_SHARED, "warm": NUM_SHARED, "explain": NUM_SHARED, "list": 0, "drop": 0, "pin": 0}


@pytest.mark.parametrize("act", SHARED_ACTS)
def test_of_declared_content_bob_finds_its_blocks_and_takes_none(act: str, tmp_path: Path) -> None:
    file = tmp_path / "library.txt"
    file.write_text(SYSTEM["content"] + "\n")
    with tenants(shared_prompts=str(file)) as (alice, bob, server):
        reply = alice.chat(SYSTEM, question("One?"))
        before = [{**entry, "age_s": 0, "ttl_s": 0} for entry in alice.entries()["data"]]
        assert [entry["declared_tokens"] for entry in before] == [NUM_SHARED]
        assert SHARED_ACTS[act](bob) == FINDS[act]
        assert [{**entry, "age_s": 0, "ttl_s": 0} for entry in alice.entries()["data"]] == before
        assert alice.cached(SYSTEM, question("One?")) == reply.usage.prompt_tokens - 1
        assert bob.cached(SYSTEM, question("Else?"), extra_body={"cache_salt": "mine"}) == 0
        server.expect_idle()


def test_dropping_messages_that_are_all_shared_drops_what_the_caller_has_after_them(tmp_path: Path) -> None:
    file = tmp_path / "library.txt"
    file.write_text(SYSTEM["content"])
    with tenants(shared_prompts=str(file)) as (alice, bob, _):
        for client in (alice, bob):
            client.chat(SYSTEM, question("One?"))
        assert alice.post("drop", SYSTEM)["tokens"] > 0
        assert alice.entries()["data"] == []
        assert alice.cached(SYSTEM, question("One?")) == NUM_SHARED < bob.cached(SYSTEM, question("One?"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("DELETE", "/v1/cache/xyz", 400), ("DELETE", "/v1/cache/00", 200), ("POST", "/v1/cache/pin", 400)],
)
def test_what_makes_no_sense(client: OpenAI, method: str, path: str, status: int) -> None:
    response = client._client.request(method, str(client.base_url).removesuffix("/v1/") + path)
    assert response.status_code == status


# -- explicit mode --


def marked(text: str, **point: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, "prompt_cache_breakpoint": {"mode": "explicit", **point}}


EXPLICIT = {"prompt_cache_options": {"mode": "explicit"}}


def test_explicit_mode_without_breakpoints_reads_and_writes_nothing() -> None:
    with tenants() as (alice, _, _):
        for _ in range(2):
            usage = alice.chat(SYSTEM, question("One?"), extra_body=EXPLICIT).usage.prompt_tokens_details
            assert (usage.cached_tokens, usage.cache_write_tokens) == (0, 0)
        assert alice.entries()["data"] == []
        assert alice.cached(SYSTEM, question("One?")) == 0


def test_explicit_mode_reads_and_writes_to_the_breakpoint_s_token() -> None:
    with tenants() as (alice, _, _):
        system = {"role": "system", "content": [marked("Stable rules, word for word."), {"type": "text", "text": "!"}]}
        stable = len("<system\n") + len("Stable rules, word for word.")
        first = alice.chat(system, question("One?"), extra_body=EXPLICIT).usage.prompt_tokens_details
        assert (first.cached_tokens, first.cache_write_tokens) == (0, stable)
        second = alice.chat(system, question("Two?"), extra_body=EXPLICIT).usage.prompt_tokens_details
        assert (second.cached_tokens, second.cache_write_tokens) == (stable, 0)
        longer = {"role": "user", "content": [marked("A file."), {"type": "text", "text": "And?"}]}
        third = alice.chat(system, longer, extra_body=EXPLICIT).usage.prompt_tokens_details
        assert third.cached_tokens == stable and third.cache_write_tokens > len("A file.")
