"""Admission: how many chat requests are in flight, in all and per tenant; past a bound, `Overloaded` (429).

The guard runs before a body is read, so that refused work costs nothing. One event loop owns the counts: no
locks.
"""

import time
from collections import Counter
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from proxy.scope import request_scope
from sessions.errors import Overloaded
from sessions.types import Tenant

_SMOOTHING = 0.1
_LONGEST_RETRY_AFTER_S = 60.0


class InFlight:
    """`per_tenant` 0 means that only the total is bounded."""

    def __init__(self, total: int, per_tenant: int) -> None:
        self._total = total
        self._per_tenant = per_tenant
        self._counts: Counter[str] = Counter()
        self._mean_duration_s = 1.0

    @property
    def num_in_flight(self) -> int:
        return self._counts.total()

    def enter(self, tenant: Tenant) -> None:
        """Count one more request of the tenant's. Raises Overloaded, counting nothing."""
        if self.num_in_flight >= self._total:
            raise self._overloaded("Too many requests are in flight on this server.", self._total)
        if self._per_tenant and self._counts[tenant.id] >= self._per_tenant:
            raise self._overloaded("Too many of your requests are in flight on this server.", self._per_tenant)
        self._counts[tenant.id] += 1

    def leave(self, tenant: Tenant, duration_s: float) -> None:
        """Undo one `enter`; its duration feeds the estimate of Retry-After."""
        self._counts[tenant.id] -= 1
        if not self._counts[tenant.id]:
            del self._counts[tenant.id]
        self._mean_duration_s += _SMOOTHING * (duration_s - self._mean_duration_s)

    def _overloaded(self, message: str, bound: int) -> Overloaded:
        # Little's law: with `bound` requests of this mean duration, one place falls free every mean / bound
        # seconds.
        return Overloaded(message, retry_after_s=min(_LONGEST_RETRY_AFTER_S, self._mean_duration_s / bound))


async def admit(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard, after `auth.require_api_key`; the place is given back when the request ends.

    Raises Overloaded.
    """
    in_flight: InFlight = connection.app.state.in_flight
    held = request_scope(connection.scope)
    tenant = held.caller
    in_flight.enter(tenant)
    held.given_back.callback(lambda: in_flight.leave(tenant, time.monotonic() - held.started_at))
