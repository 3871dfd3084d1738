"""Replicas on a server of the test's own, and what each must answer, computed without the code that answers.

The model is the fake one: one byte is one token and the next token hangs on all before it, so a prompt's ids, its reply
and what of it can be cached are known from the messages alone.
"""

import asyncio
import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx
import redis
from openai import AsyncOpenAI

from proxy.settings import Settings
from sessions.engine.config import EngineConfig
from sessions.hashing import chain_hashes, root_hash, tenant_key
from sessions.index import IndexSettings, PrefixIndex
from sessions.parts import IndexOptions, ServiceParts
from sessions.service import ChatService
from sessions.startup import ServiceOptions
from sessions.trie import Incarnation, PrefixTrie, namespace_of
from sessions.types import BlockHash, Tenant
from tests.contract.conftest import RunningServer, shared_tokenizer
from tests.fakes import ROOT_FIELDS, FakeRunner, next_token

SECRET = b"s" * 32
MAX_TOKENS = 8
BLOCK_SIZE = ROOT_FIELDS.block_size

Messages = Sequence[dict[str, str]]


class Replica(RunningServer):
    """A whole server on the Redis of `url`. Tenants and keys as in `ANAPHORA_API_KEYS`."""

    def __init__(self, url: str, client: IndexSettings, *, secret: bytes = SECRET, api_keys: str = "") -> None:
        settings: dict[str, Any] = {"index": "redis", "redis_url": url, "api_keys": api_keys}
        super().__init__(Settings(**settings), {})
        self._index = IndexOptions("redis", url, round(client.timeout_s * 1000), client)
        self._secret = secret

    async def _open(self, _: ServiceOptions) -> ChatService:
        self.loop = asyncio.get_running_loop()
        tokenizer, config = shared_tokenizer(), EngineConfig(num_blocks=8192, block_size=BLOCK_SIZE)
        parts = ServiceParts("fake", tokenizer, config, ROOT_FIELDS, self._secret, 256, self._index)
        self.service = ChatService(parts, FakeRunner(config.num_blocks, config.block_size, tokenizer.vocab_size))
        self.service.open()
        return self.service

    def __enter__(self) -> "Replica":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def incarnation(self) -> Incarnation:
        return self.service.index.incarnation


def peer(url: str, client: IndexSettings, *, secret: bytes = SECRET) -> PrefixIndex:
    """A replica of the same fleet that holds nothing: with one alive, the trie is asked on the way of a request."""
    fleet = root_hash(ROOT_FIELDS, tenant_key(secret, "", None))
    return PrefixIndex(url, fleet=fleet, resync_source=list, settings=client)


# -- what must be answered --


_VISIBLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [*_VISIBLE, *(byte for byte in range(256) if byte not in _VISIBLE)]
"""The byte that each of the tokens 0..255 stands for: those that are visible in Latin-1 come first."""
TOKENS = {byte: token for token, byte in enumerate(BYTES)}
IM_START, IM_END = 256, 257


def prompt_ids(messages: Messages) -> list[int]:
    """ChatML by hand."""
    ids: list[int] = []
    for message in messages:
        ids += [IM_START, *_byte_ids(f"{message['role']}\n{message['content']}"), IM_END, *_byte_ids("\n")]
    return [*ids, IM_START, *_byte_ids("assistant\n")]


def reply_ids(prompt: Sequence[int]) -> list[int]:
    """What the fake model says to `prompt`: MAX_TOKENS tokens."""
    ids = list(prompt)
    for _ in range(MAX_TOKENS):
        ids.append(next_token(ids, IM_END + 1))
    return ids[len(prompt) :]


BEGINNINGS = {
    spelt[:count]
    for code_point in range(0x80, 0x110000, 64)
    if not 0xD800 <= code_point < 0xE000
    for spelt in [chr(code_point).encode()]
    for count in range(1, len(spelt))
}
"""All that a code point of several bytes can begin with, short of all of it."""


def text_of(reply: Sequence[int]) -> str:
    """What is still an incomplete code point at the end is not shown."""
    spelt = bytes(BYTES[token] for token in reply if token < IM_START)
    cut = next((count for count in (3, 2, 1) if spelt[-count:] in BEGINNINGS), 0)
    return spelt[: len(spelt) - cut].decode("utf-8", "replace")


def _byte_ids(text: str) -> list[int]:
    return [TOKENS[byte] for byte in text.encode()]


def block_hashes(prompt: Sequence[int], tenant: str = Tenant().id, secret: bytes = SECRET) -> list[BlockHash]:
    """The root of `tenant`, then the hashes of the prompt's whole blocks."""
    root = root_hash(ROOT_FIELDS, tenant_key(secret, tenant, None))
    return [root, *chain_hashes(root, prompt, BLOCK_SIZE)]


def num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids two prompts have in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


# -- asking and looking --


class Reply(NamedTuple):
    text: str
    num_cached_tokens: int


async def ask(client: AsyncOpenAI, messages: Messages, *, stream: bool = False) -> Reply:
    """One chat completion of the real client, whole or streamed."""
    create: Any = client.chat.completions.create
    parameters = {"model": "fake", "messages": messages, "max_tokens": MAX_TOKENS, "extra_body": {"ignore_eos": True}}
    if not stream:
        whole = await create(**parameters)
        return Reply(whole.choices[0].message.content, whole.usage.prompt_tokens_details.cached_tokens)
    pieces, usage = [], None
    async for chunk in await create(**parameters, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert usage is not None
    return Reply("".join(pieces), usage.prompt_tokens_details.cached_tokens)


class Look(NamedTuple):
    """What an operator sees: `/ready`, and the index's part of `/metrics`."""

    ready_status: int
    ready_index: str
    state: str
    counters: dict[str, int]


async def look(operator: httpx.AsyncClient) -> Look:
    ready, metrics = await operator.get("/ready"), await operator.get("/metrics")
    states = re.findall(r'^anaphora_index_state\{anaphora_index_state="(\w+)"\} 1\.0$', metrics.text, re.MULTILINE)
    counters = re.findall(r"^anaphora_index_(\w+)_total (\S+)$", metrics.text, re.MULTILINE)
    [state] = states
    return Look(ready.status_code, ready.json()["index"], state, {name: int(float(n)) for name, n in counters})


def num_claimed(port: int, prompt: Sequence[int], who: Incarnation, tenant: str = Tenant().id) -> int:
    """How many leading blocks of `prompt` Redis says that `who` holds."""
    root, *hashes = block_hashes(prompt, tenant)
    with redis.Redis(port=port) as client:
        claim = PrefixTrie(client).lookup(namespace_of(root), hashes).holders.get(who)
    return claim.num_blocks if claim else 0
