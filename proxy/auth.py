"""API keys: the guard of `/v1`, which runs before a body is read, and the tenant that a key stands for.

Keys are held as digests. A given key is compared with every configured one in constant time and without an
early exit, so that neither how many keys there are before it nor how much of one it shares can be timed.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from proxy.errors import Unauthorized
from proxy.scope import request_scope
from sessions.types import Tenant


class KeyRing:
    """The configured keys. Without any, everybody is the default tenant."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._entries = [(_digest(key), Tenant(tenant)) for tenant, key in pairs]

    def tenant_of(self, authorization: str) -> Tenant:
        """Tenant behind an `Authorization` header's value. Raises Unauthorized."""
        if not self._entries:
            return Tenant()
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        found: Tenant | None = None
        for digest, tenant in self._entries:
            if hmac.compare_digest(digest, given):
                found = tenant
        if found is None or scheme.lower() != "bearer":
            raise Unauthorized
        return found


async def require_api_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard: puts the tenant on the request's scope. Raises Unauthorized."""
    key_ring: KeyRing = connection.app.state.key_ring
    request_scope(connection.scope).tenant = key_ring.tenant_of(connection.headers.get("authorization", ""))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
