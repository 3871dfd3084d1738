"""A server as the studies see it: what it understands, and requests that share its cache or do not.

A *scope* is a name under which prompts share. Two requests of different scopes share nothing: on a server that takes
`cache_salt` because of the salt, on any other because the prompt begins with words of the scope's own.
"""

import random
import secrets
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from openai import APIConnectionError, APIStatusError

from benchmarks.client import BenchmarkFailed, Client, Messages, Reply
from benchmarks.words import WORDS, WordSource

SCOPE_WORDS: Final = 6
PROBE_WORDS: Final = 200
LEAST_FOUND: Final = 64
"""Of the probe's tokens; so much and more is found by a cache that may be large-grained."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request. gaps_s: between pieces of the reply. num_cached_tokens: None where the server is silent."""

    time_to_first_token_s: float
    total_s: float
    num_prompt_tokens: int
    num_cached_tokens: int | None
    num_tokens: int
    gaps_s: tuple[float, ...]
    text: str
    anaphora: dict[str, Any]

    @classmethod
    def of(cls, reply: Reply) -> "Sample":
        return cls(
            reply.time_to_first_token_s,
            reply.last_at - reply.sent_at,
            reply.num_prompt_tokens,
            reply.num_cached_tokens,
            reply.num_tokens,
            tuple(after - before for before, after in pairwise(reply.arrivals)),
            reply.text,
            reply.anaphora,
        )

    @property
    def ttft_ms(self) -> float:
        return 1000 * self.time_to_first_token_s

    @property
    def cached_tokens(self) -> int:
        """Zero where the server does not say."""
        return self.num_cached_tokens or 0

    @property
    def tokens_per_s(self) -> float | None:
        """After the first token; None for a reply of one."""
        writing_s = self.total_s - self.time_to_first_token_s
        return (self.num_tokens - 1) / writing_s if self.num_tokens > 1 and writing_s > 0 else None


@dataclass(frozen=True, slots=True)
class Traits:
    """is_anaphora: has this project's routes. takes_salt: `cache_salt` keeps prompts apart. ignores_eos: takes that
    field. says_cached: usage names cached tokens.
    """

    is_anaphora: bool = False
    takes_salt: bool = False
    ignores_eos: bool = False
    says_cached: bool = False

    def as_json(self) -> dict[str, bool]:
        return asdict(self)


class Subject:
    """A server that is ready, under a name."""

    def __init__(self, name: str, client: Client, traits: Traits) -> None:
        self.name = name
        self.client = client
        self.traits = traits

    @property
    def model(self) -> str:
        """Its name; of a path, which some servers tell, the last part."""
        return (
            self.client.model.rstrip("/").rpartition("/")[2] if self.client.model.startswith("/") else self.client.model
        )

    @classmethod
    async def look(cls, name: str, client: Client) -> "Subject":
        """Find out, by some four requests, what the server understands. Raises BenchmarkFailed."""
        ignores_eos = await _is_taken(client, ignore_eos=True)
        takes_salt = says_cached = False
        if await _is_taken(client, cache_salt=new_scope()):
            takes_salt, says_cached = await _try_salts(client)
        return cls(name, client, Traits(await _has_our_routes(client), takes_salt, ignores_eos, says_cached))

    async def ask(self, messages: Messages, max_tokens: int, scope: str, **fields: Any) -> Sample:
        """One streamed, greedy request. Raises OpenAIError, BenchmarkFailed."""
        own: dict[str, Any] = {"ignore_eos": True} if self.traits.ignores_eos else {}
        sent = own | self.salt(scope) | fields
        return Sample.of(await self.client.ask(self.scoped(messages, scope), max_tokens, **sent))

    def salt(self, scope: str) -> dict[str, str]:
        """Fields for the body."""
        return {"cache_salt": scope} if self.traits.takes_salt else {}

    def scoped(self, messages: Messages, scope: str) -> Messages:
        """The messages as they are sent in this scope."""
        if self.traits.takes_salt:
            return messages
        first: dict[str, Any] = dict(messages[0])
        words = " ".join(random.Random(scope).choices(WORDS, k=SCOPE_WORDS))  # noqa: S311
        first["content"] = f"{words.capitalize()}. {first['content']}"
        return [first, *messages[1:]]  # type: ignore[list-item]


def new_scope() -> str:
    """One that no run before has had."""
    return secrets.token_hex(8)


async def _is_taken(client: Client, **fields: Any) -> bool:
    """Does the server answer a request with these fields? Raises BenchmarkFailed where it answers none."""
    try:
        await client.ask([{"role": "user", "content": "Hello"}], 1, **fields)
    except APIStatusError as error:
        if error.status_code in (400, 422):
            return False
        raise BenchmarkFailed(f"the server refuses a plain request: {error}") from error
    return True


async def _try_salts(client: Client) -> tuple[bool, bool]:
    """(does the salt keep prompts apart, is it told how much was cached)."""
    text = WordSource(secrets.randbits(32)).take(PROBE_WORDS)
    messages: Messages = [{"role": "system", "content": text}, {"role": "user", "content": "Go on."}]
    ours, theirs = new_scope(), new_scope()
    replies = [await client.ask(messages, 1, cache_salt=salt) for salt in (ours, ours, theirs)]
    again, apart = replies[1].num_cached_tokens, replies[2].num_cached_tokens
    found = again is not None and again >= LEAST_FOUND
    return found and (apart or 0) < LEAST_FOUND, any(reply.num_cached_tokens is not None for reply in replies)


async def _has_our_routes(client: Client) -> bool:
    try:
        return (await client.get("/cache/stats")).get("object") == "cache.stats"
    except (APIStatusError, APIConnectionError, ValueError, AttributeError):
        return False
