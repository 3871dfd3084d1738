"""What one HTTP request holds while it runs; whoever takes something registers how it is given back.

    created  by `logs.attach_request_id` or `logs.RequestLog`, whichever comes first
    filled   by the guards (tenant, admission) and by the chat controller (the reply and what to log of it)
    closed   by `logs.RequestLog`, once, however the request ends: answered, refused, failed, or left by its
    client

Clean-ups are synchronous: an `await` while the server tears a request down is cancelled again.
"""

import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from litestar.types import Scope

from sessions.types import Tenant

_STATE_KEY = "anaphora_request"
_CLIENT_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class RequestScope:
    """`fields` go on the request's one log line; `given_back` runs its callbacks last-in first-out."""

    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    tenant: Tenant | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    given_back: ExitStack = field(default_factory=ExitStack)

    @property
    def caller(self) -> Tenant:
        """Whose request it is: the guard's tenant, or the only one there is."""
        return self.tenant or Tenant()


def request_scope(scope: Scope) -> RequestScope:
    """The request's `RequestScope`, made on first use. A sane `x-request-id` of the client's is kept."""
    held = scope["state"].get(_STATE_KEY)
    if held is None:
        held = scope["state"][_STATE_KEY] = RequestScope(_client_request_id(scope) or uuid4().hex)
    assert isinstance(held, RequestScope)
    return held


def _client_request_id(scope: Scope) -> str | None:
    sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
    return sent.decode("ascii") if sent is not None and _CLIENT_ID.fullmatch(sent) else None
