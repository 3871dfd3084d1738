"""Replying: a request that `sessions` understands into a Reply that ends with its HTTP request, whatever happens.

What every controller that generates has in common: start, register the clean-up, wait for the first delta while the
client may leave, note for the log line what it was.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from proxy.answer_schemas import AnswerHead
from proxy.body import BodyRequest
from proxy.errors import ClientDisconnected
from proxy.metrics import Metrics
from proxy.reply import OpenReplies, Reply
from proxy.scope import RequestScope, request_scope
from proxy.settings import Settings
from sessions.generation import Generation
from sessions.service import ChatService
from sessions.types import ChatRequest, CompletionRequest

T = TypeVar("T")


def head_of(generation: Generation, service: ChatService) -> AnswerHead:
    return AnswerHead(generation.id, int(datetime.now(UTC).timestamp()), service.model_id, service.system_fingerprint)


@dataclass(frozen=True, slots=True)
class Replier:
    """What opening a reply takes beside the request itself."""

    service: ChatService
    settings: Settings
    metrics: Metrics
    open_replies: OpenReplies

    async def open(self, request: BodyRequest, asked: ChatRequest | CompletionRequest) -> Reply:
        """A reply whose first delta is there, so that a failure before it still has a real HTTP status.

        Given back when the HTTP request ends. Raises what `ChatService.start` does, and ClientDisconnected.
        """
        held = request_scope(request.scope)
        reply = Reply(
            await self.service.start(asked),
            held,
            self.metrics,
            keepalive_s=self.settings.keepalive_s,
            max_time_s=self.settings.max_completion_time_s,
        )
        self.open_replies.add(reply)
        held.given_back.callback(self._give_back, reply, held)
        await unless_client_leaves(request, reply.begin())
        return reply

    def _give_back(self, reply: Reply, held: RequestScope) -> None:
        """The end of every reply: abort what still runs, note what it was for the log line. Synchronous."""
        aborted = not reply.finish_reasons
        reply.close()
        self.open_replies.discard(reply)
        usage, queue_time_s = reply.generation.usage(), reply.generation.queue_time_s
        if queue_time_s is not None:
            self.metrics.request_queue_time.observe(queue_time_s)
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


async def unless_client_leaves(request: BodyRequest, work: Coroutine[Any, Any, T]) -> T:
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


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
