"""POST /v1/chat/completions. Thin: translate, start, then collect the reply or hand its frames to the server.

Everything that can be a 4xx or 5xx happens before a `Stream` is returned; past that only an error frame is
possible.
"""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET, UnsetType

from proxy import sse
from proxy.asked import asked_of
from proxy.body import BodyRequest
from proxy.errors import ClientDisconnected
from proxy.metrics import Metrics
from proxy.reply import OpenReplies, Reply
from proxy.schemas import AnaphoraReport, AnswerMessage, ChatCompletion, ChatCompletionRequest, Choice, CompletionUsage
from proxy.scope import RequestScope, request_scope
from proxy.settings import Settings
from sessions.service import ChatService

T = TypeVar("T")


class ChatController(Controller):
    """Guards and limits stand in `app.py`, where the router is made."""

    path = "/chat/completions"
    request_class = BodyRequest

    @post(status_code=200, summary="Create a chat completion, whole or as server-sent events")
    async def create(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
        metrics: NamedDependency[Metrics],
        open_replies: NamedDependency[OpenReplies],
    ) -> Response[ChatCompletion] | Stream:
        held = request_scope(request.scope)
        asked = asked_of(service, data, held, settings)
        generation = await service.start(asked)
        reply = Reply(
            generation,
            held,
            metrics,
            keepalive_s=settings.keepalive_s,
            max_time_s=settings.max_completion_time_s,
        )
        open_replies.add(reply)
        held.given_back.callback(_give_back, reply, open_replies, held, metrics)
        await _unless_client_leaves(request, reply.begin())

        created, tier = int(datetime.now(UTC).timestamp()), _service_tier(data)
        report = AnaphoraReport.of(generation.report)
        if data.stream:
            options = data.stream_options
            frames = sse.frames(
                reply,
                sse.ChunkWriter(generation.id, created, service.model_id, tier, report),
                n=asked.n,
                include_usage=bool(options and options.include_usage),
                request_id=held.request_id,
            )
            return Stream(frames, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        choices = await _unless_client_leaves(request, _collect(reply, asked.n))
        completion = ChatCompletion(
            id=generation.id,
            created=created,
            model=service.model_id,
            choices=choices,
            usage=CompletionUsage.of(generation.usage()),
            service_tier=tier,
            anaphora=report,
        )
        return Response(completion)


async def _collect(reply: Reply, n: int) -> list[Choice]:
    """The whole answer. Raises SessionError."""
    pieces: list[list[str]] = [[] for _ in range(n)]
    async for batch in reply.batches():
        for delta in batch:
            pieces[delta.choice].append(delta.text)
    return [
        Choice(
            index=index,
            message=AnswerMessage(content="".join(text)),
            finish_reason=reply.finish_reasons[index],
        )
        for index, text in enumerate(pieces)
    ]


async def _unless_client_leaves(request: BodyRequest, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result, or raises ClientDisconnected if the client leaves: servers cancel only streams."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _client_left(request: BodyRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _give_back(reply: Reply, open_replies: OpenReplies, held: RequestScope, metrics: Metrics) -> None:
    """The end of every reply: abort what still runs, note what it was for the log line. Synchronous."""
    aborted = not reply.finish_reasons
    reply.close()
    open_replies.discard(reply)
    usage, queue_time_s = reply.generation.usage(), reply.generation.queue_time_s
    if queue_time_s is not None:
        metrics.request_queue_time.observe(queue_time_s)
    held.fields.update(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        spliced_messages=reply.generation.report.num_spliced,
        restored_tokens=usage.restored_tokens,
        completion_tokens=usage.completion_tokens,
        time_to_first_token_s=_rounded(reply.time_to_first_token_s),
        queue_time_s=_rounded(queue_time_s),
        finish_reason="abort" if aborted else ",".join(sorted(set(reply.finish_reasons.values()))),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _service_tier(data: ChatCompletionRequest) -> str | UnsetType:
    return UNSET if data.service_tier is None else "default"
