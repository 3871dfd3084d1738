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
from typing import Annotated, Any, Final

from litestar import Controller, Request, Response, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.response import Stream

from proxy import sse
from proxy.documented import answers
from proxy.errors import internal_error_answer, log_unexpected
from proxy.live_schemas import CacheLive
from proxy.live_window import RecentPace
from proxy.schemas import ENCODER
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import Overloaded
from sessions.picture import Picture
from sessions.service import ChatService
from sessions.types import Tenant

MAX_WATCHERS: Final = 64
MAX_WATCHERS_PER_TENANT: Final = 16
_DRAIN_POLL_S: Final = 0.25
_SHARED_S: Final = 0.2
"""So old a picture may be that another look is shown."""
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


class Live:
    """What a look takes. One per app. However many watch, a tenant's picture is drawn a few times a second at most."""

    def __init__(self, pace: RecentPace) -> None:
        self.pace = pace
        self.watchers = Watchers()
        self._drawn: dict[tuple[str, int], tuple[float, Picture]] = {}

    async def moment(self, service: ChatService, tenant: Tenant, max_nodes: int, *, watches: bool) -> CacheLive:
        """watches: one event of many, for which a picture that was just drawn will do."""
        stats = service.stats()
        picture = self._just_drawn(tenant, max_nodes) if watches else None
        if picture is None:
            picture = await service.cache.picture(tenant, max_nodes)
            if watches:
                self._drawn[tenant.id, max_nodes] = time.monotonic(), picture
        return CacheLive.of(service.model_id, service.pool_tokens, stats, self.pace.look(stats), picture)

    def _just_drawn(self, tenant: Tenant, max_nodes: int) -> Picture | None:
        self._drawn = {key: entry for key, entry in self._drawn.items() if time.monotonic() - entry[0] < _SHARED_S}
        _, picture = self._drawn.get((tenant.id, max_nodes), (0.0, None))
        return picture


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
        if sse.MEDIA_TYPE not in request.headers.get("accept", ""):
            return Response(await live.moment(service, held.caller, nodes, watches=False))
        live.watchers.enter(held.caller)
        held.given_back.callback(live.watchers.leave, held.caller)
        first = await live.moment(service, held.caller, nodes, watches=True)
        ends_at = held.started_at + settings.max_completion_time_s

        async def events() -> AsyncIterator[bytes]:
            yield _event(first)
            try:
                while await _pause(service, interval_s, ends_at):
                    yield _event(await live.moment(service, held.caller, nodes, watches=True))
                yield sse.DONE
            except Exception as error:  # noqa: BLE001 - logged; after the first byte no exception may leave
                log_unexpected(held.request_id, error)
                yield sse.error_event(internal_error_answer()) + sse.DONE

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
