"""/v1/cache/live: the cache at one moment, or moment after moment as server-sent events. For the page at `/ui`.

    Accept: text/event-stream     data: {one moment} │ data: {the next} │ …  until the client leaves
    anything else                 one moment

A stream is no request in flight: it holds nothing of the engine, which is asked for bounded work between two steps. How
many there are is bounded here. It ends when the server drains, and at the time limit of a reply; clients come back.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from proxy import sse
from proxy.documented import answers
from proxy.live_schemas import CacheLive
from proxy.live_window import RecentPace
from proxy.schemas import ENCODER
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import Overloaded
from sessions.service import ChatService
from sessions.types import Tenant

MAX_WATCHERS: Final = 64
MAX_WATCHERS_PER_TENANT: Final = 16
_DRAIN_POLL_S: Final = 0.25
_RETRY_AFTER_S: Final = 10.0

Interval = Annotated[float, QueryParameter(description="Seconds between two events of a stream.", ge=0.2, le=10)]
Nodes = Annotated[int, QueryParameter(description="Nodes of the tree, at most.", ge=1, le=1000)]


class Watchers:
    """How many streams there are, by tenant. Event loop only."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def num_open(self) -> int:
        return self._counts.total()

    def enter(self, tenant: Tenant) -> None:
        """Raises Overloaded."""
        if self.num_open() >= MAX_WATCHERS or self._counts[tenant.id] >= MAX_WATCHERS_PER_TENANT:
            raise Overloaded("Too many live streams are open.", retry_after_s=_RETRY_AFTER_S)
        self._counts[tenant.id] += 1

    def leave(self, tenant: Tenant) -> None:
        self._counts[tenant.id] -= 1
        if not self._counts[tenant.id]:
            del self._counts[tenant.id]


@dataclass(frozen=True, slots=True)
class Live:
    """What a look takes. One per app."""

    pace: RecentPace
    watchers: Watchers = field(default_factory=Watchers)

    async def moment(self, service: ChatService, tenant: Tenant, max_nodes: int) -> CacheLive:
        stats = service.stats()
        runs = await service.cache.runs(tenant, max_nodes)
        return CacheLive.of(service.model_id, service.pool_tokens, stats, self.pace.look(stats), runs)


class LiveController(Controller):
    path = "/cache/live"
    tags = ("Cache",)

    @get(
        opt=answers(400, 429, events=CacheLive),
        summary="The pool, the pace and this tenant's tree; as events if `Accept` is `text/event-stream`",
    )
    async def live(
        self,
        request: Request[Any, Any, Any],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
        live: NamedDependency[Live],
        interval_s: Interval = 1.0,
        nodes: Nodes = 200,
    ) -> Response[CacheLive] | Stream:
        """Pool and pace are over all tenants, as in `/metrics`; the tree is the caller's own, every salt of it."""
        held = request_scope(request.scope)
        first = await live.moment(service, held.caller, nodes)
        if sse.MEDIA_TYPE not in request.headers.get("accept", ""):
            return Response(first)
        live.watchers.enter(held.caller)
        held.given_back.callback(live.watchers.leave, held.caller)
        ends_at = held.started_at + settings.max_completion_time_s

        async def events() -> AsyncIterator[bytes]:
            yield _event(first)
            while await _pause(service, interval_s, ends_at):
                yield _event(await live.moment(service, held.caller, nodes))
            yield sse.DONE

        return Stream(events(), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _pause(service: ChatService, interval_s: float, ends_at: float) -> bool:
    """Sleep until the next event is due. False, and early, when there shall be none."""
    due = time.monotonic() + interval_s
    while (left_s := due - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, _DRAIN_POLL_S))
        if service.readiness().draining or not service.engine.is_alive or time.monotonic() > ends_at:
            return False
    return True


def _event(moment: CacheLive) -> bytes:
    return b"data: " + ENCODER.encode(moment) + b"\n\n"
