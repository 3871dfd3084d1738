"""/v1/cache: what a tenant sees of its own cache, and does to it. Thin: translate, ask the service, shape the answer.

Bodies are those of chat completions, so that a client sends what it would send anyway; of them the messages and what
says whose cache it is (`cache_salt`) count. A tenant sees and touches nothing of another's.
"""

from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter

from proxy.asked import asked_of
from proxy.body import BodyRequest
from proxy.cache_schemas import (
    CacheDropped,
    CacheEntries,
    CacheEntry,
    CacheExplanation,
    CacheLayout,
    CachePinned,
    CacheStats,
    CacheWarmed,
)
from proxy.documented import EXAMPLE, answers
from proxy.schemas import ChatCompletionRequest
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import InvalidRequest
from sessions.service import ChatService
from sessions.types import BlockHash


class CacheController(Controller):
    """Bodies and limits as for chat."""

    path = "/cache"
    tags = ("Cache",)
    request_class = BodyRequest

    @post(
        "/explain",
        status_code=200,
        opt=answers(404, example=EXAMPLE),
        summary="What the cache has of a chat request, and why no more; nothing is run",
    )
    async def explain(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> CacheExplanation:
        return CacheExplanation.of(
            await service.explain(asked_of(service, data, request_scope(request.scope), settings))
        )

    @post(
        "/warm",
        status_code=200,
        opt=answers(404, example=EXAMPLE),
        summary="Compute and keep what the messages render to, and say nothing",
    )
    async def warm(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> CacheWarmed:
        usage = await service.warm(asked_of(service, data, request_scope(request.scope), settings))
        return CacheWarmed(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        )

    @post(
        "/pin", status_code=200, opt=answers(404, example=EXAMPLE), summary="Never evict what is stored of the messages"
    )
    async def pin(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> CachePinned:
        asked = asked_of(service, data, request_scope(request.scope), settings)
        return CachePinned(object="cache.pinned", tokens=await service.cache.pin(asked))

    @post("/unpin", status_code=200, opt=answers(404, example=EXAMPLE), summary="Undo the longest pin on the messages")
    async def unpin(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> CachePinned:
        asked = asked_of(service, data, request_scope(request.scope), settings)
        return CachePinned(object="cache.unpinned", tokens=await service.cache.unpin(asked))

    @post(
        "/drop",
        status_code=200,
        opt=answers(404, example=EXAMPLE),
        summary="Forget the last block of the messages and all that follows it",
    )
    async def drop(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> CacheDropped:
        asked = asked_of(service, data, request_scope(request.scope), settings)
        return CacheDropped(tokens=await service.cache.drop(asked))

    @get("/stats", summary="How much this tenant has, in the pool and below it")
    async def stats(self, request: BodyRequest, service: NamedDependency[ChatService]) -> CacheStats:
        totals = await service.cache.totals(request_scope(request.scope).caller)
        return CacheStats.of(totals, service.bytes_per_token)

    @get("/layout", summary="What KV of the model looks like, and how much of it the pool takes")
    async def layout(self, service: NamedDependency[ChatService]) -> CacheLayout:
        return CacheLayout.of(service.kv_layout())

    @get(summary="What this tenant has, path by path")
    async def entries(self, request: BodyRequest, service: NamedDependency[ChatService]) -> CacheEntries:
        caller = request_scope(request.scope).caller
        holdings, num_tokens = await service.cache.holdings(caller)
        below = await service.cache.holdings_below(caller)
        return CacheEntries(
            data=[
                *(CacheEntry.of(holding, service.bytes_per_token) for holding in holdings),
                *map(CacheEntry.below, below),
            ],
            tokens=num_tokens,
            bytes=num_tokens * service.bytes_per_token,
        )

    @delete(status_code=200, summary="Forget everything of this tenant's")
    async def drop_all(self, request: BodyRequest, service: NamedDependency[ChatService]) -> CacheDropped:
        return CacheDropped(tokens=await service.cache.drop_all(request_scope(request.scope).caller))

    @delete("/{entry_id:str}", status_code=200, opt=answers(400), summary="Forget what an entry shares with no other")
    async def drop_entry(
        self,
        request: BodyRequest,
        entry_id: Annotated[str, PathParameter(description="`id` of an entry: a hexadecimal number.")],
        service: NamedDependency[ChatService],
    ) -> CacheDropped:
        try:
            leaf_hash = BlockHash(bytes.fromhex(entry_id))
        except ValueError:
            raise InvalidRequest("An entry's id is a hexadecimal number.", param="id") from None
        return CacheDropped(tokens=await service.cache.drop_path(request_scope(request.scope).caller, leaf_hash))
