"""ResponseStore: the responses and conversations of each tenant, and what of them a next turn needs. Event loop only.

A response keeps its own turn only, and the names of the turns before it, so that a conversation of n turns costs n
records and one round trip:

    resp_a   path ()                inputs, body (with its outputs)
    resp_b   path (resp_a)          inputs, body
    resp_c   path (resp_a, resp_b)  inputs, body          context of what follows: a, b, c

Writing a response renews the turns it builds on. A conversation is one record, changed only where it is still what was
read. What bodies and items say is the caller's business: here they are JSON, as bytes.
"""

import base64
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final, Literal

import msgpack

from sessions.documents import Document, Documents
from sessions.errors import InvalidRequest, NotStored, StoreUnavailable
from sessions.hashing import tenant_key
from sessions.types import Tenant

ID_BYTES: Final = 24
FETCHED_AT_ONCE: Final = 32
MAX_FETCHED_BYTES: Final = 16 << 20
"""Of records that one request has fetched, or one record's bound if that is more: what is past it is no prompt."""
MAX_ATTEMPTS: Final = 8
"""To change a conversation that others change at the same time."""
_ID: Final = re.compile(r"(resp|conv)_[0-9a-f]{48}")
_PREFIXES: Final = {"response": "resp_", "conversation": "conv_"}
_FORMAT: Final = 1
_SHELF_PERSON: Final = b"anaphora/shelf/1"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """body: the response as it was sent. inputs: its own input items, a JSON array.

    path: the responses before it, the first one first. conversation, num_items: the conversation it belongs to, and how
    many of its items came before. num_dropped: messages that truncation left out of its prompt.
    """

    id: str
    body: bytes
    inputs: bytes
    path: tuple[str, ...] = ()
    conversation: str = ""
    num_items: int = 0
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class StoredConversation:
    """metadata: a JSON object. items: each a JSON object, the first one first."""

    id: str
    created_at: int
    metadata: bytes
    items: tuple[bytes, ...] = ()


class ResponseStore:
    """documents: None where nothing is to be stored. max_bytes: of one record."""

    def __init__(self, documents: Documents | None, secret: bytes, *, max_bytes: int) -> None:
        self._documents = documents
        self._secret = secret
        self.max_bytes = max_bytes

    @property
    def is_on(self) -> bool:
        return self._documents is not None

    # -- responses --

    async def response(self, tenant: Tenant, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises NotStored (also for another tenant's), StoreUnavailable."""
        [found] = await self.responses(tenant, [response_id], param)
        return found

    async def responses(self, tenant: Tenant, ids: Sequence[str], param: str | None = None) -> list[StoredResponse]:
        """All of them, a few at a time. Raises NotStored for the first that is not there, StoreUnavailable.

        Raises InvalidRequest for what is too large to be a prompt's.
        """
        responses: list[StoredResponse] = []
        num_bytes = 0
        for start in range(0, len(ids), FETCHED_AT_ONCE):
            names = ids[start : start + FETCHED_AT_ONCE]
            for response_id, document in zip(names, await self._fetch(tenant, names), strict=True):
                response = None if document is None else _response(response_id, document.content)
                if document is None or response is None:
                    raise NotStored("response", response_id, param)
                responses.append(response)
                num_bytes += len(document.content)
            if num_bytes > max(MAX_FETCHED_BYTES, self.max_bytes):
                raise InvalidRequest(
                    "The responses before this one are too large to be read again; begin anew with what still matters.",
                    param=param,
                    code="context_length_exceeded",
                )
        return responses

    async def keep(self, tenant: Tenant, response: StoredResponse) -> bool:
        """Whether it is stored: not where Redis is away, or it is larger than may be."""
        content = _packed_response(response)
        if self._documents is None or len(content) > self.max_bytes:
            return False
        try:
            return await self._documents.put(
                self._shelf(tenant), response.id, Document.new(content), renew=response.path
            )
        except StoreUnavailable:
            return False

    async def delete_response(self, tenant: Tenant, response_id: str) -> None:
        """What builds on it cannot be continued any more. Raises NotStored, StoreUnavailable."""
        await self._delete(tenant, "response", response_id)

    # -- conversations --

    async def conversation(self, tenant: Tenant, conversation_id: str, param: str | None = None) -> StoredConversation:
        """Raises NotStored (also for another tenant's), StoreUnavailable."""
        return (await self._versioned(tenant, conversation_id, param))[1]

    async def create_conversation(self, tenant: Tenant, conversation: StoredConversation) -> None:
        """Raises InvalidRequest for one that is too large, or where nothing is stored; StoreUnavailable."""
        if self._documents is None:
            raise InvalidRequest("This server stores no conversations.", code="store_disabled")
        content = self._packed_conversation(conversation)
        await self._documents.put(self._shelf(tenant), conversation.id, Document.new(content))

    async def change_conversation(
        self,
        tenant: Tenant,
        conversation_id: str,
        change: Callable[[StoredConversation], StoredConversation],
        param: str | None = None,
    ) -> StoredConversation:
        """The conversation as it is afterwards; `change` is called again if others change it meanwhile.

        Raises NotStored, StoreUnavailable, InvalidRequest for one that becomes too large, and what `change` does.
        """
        for _ in range(MAX_ATTEMPTS):
            version, conversation = await self._versioned(tenant, conversation_id, param)
            changed = change(conversation)
            assert self._documents is not None
            document = Document.new(self._packed_conversation(changed))
            if await self._documents.put(self._shelf(tenant), conversation_id, document, version=version):
                return changed
        raise StoreUnavailable

    async def delete_conversation(self, tenant: Tenant, conversation_id: str) -> None:
        """Raises NotStored, StoreUnavailable."""
        await self._delete(tenant, "conversation", conversation_id)

    # -- common --

    async def _versioned(
        self, tenant: Tenant, conversation_id: str, param: str | None
    ) -> tuple[bytes, StoredConversation]:
        [document] = await self._fetch(tenant, [conversation_id])
        conversation = None if document is None else _conversation(conversation_id, document.content)
        if document is None or conversation is None:
            raise NotStored("conversation", conversation_id, param)
        return document.version, conversation

    async def _fetch(self, tenant: Tenant, names: Sequence[str]) -> list[Document | None]:
        """Nobody is asked for what cannot be an id of ours."""
        if self._documents is None or not all(map(_ID.fullmatch, names)):
            return [None] * len(names)
        return await self._documents.fetch(self._shelf(tenant), names)

    async def _delete(self, tenant: Tenant, kind: Literal["response", "conversation"], name: str) -> None:
        is_ours = name.startswith(_PREFIXES[kind]) and _ID.fullmatch(name)
        if self._documents is None or not is_ours or not await self._documents.delete(self._shelf(tenant), name):
            raise NotStored(kind, name)

    def _packed_conversation(self, conversation: StoredConversation) -> bytes:
        content: bytes = msgpack.packb(
            [_FORMAT, "conversation", conversation.created_at, conversation.metadata, list(conversation.items)]
        )
        if len(content) > self.max_bytes:
            raise conversation_too_large(self.max_bytes, "items")
        return content

    def _shelf(self, tenant: Tenant) -> str:
        """Under the tenant's key: without the server's secret nobody can name it."""
        key = tenant_key(self._secret, tenant.id, None)
        digest = blake2b(key=key, digest_size=10, person=_SHELF_PERSON).digest()
        return base64.b32encode(digest).decode().lower()


def new_id(prefix: str) -> str:
    """`resp_` or `conv_` and what nobody can guess."""
    return prefix + secrets.token_hex(ID_BYTES)


def conversation_too_large(max_bytes: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"The conversation would be larger than the {max_bytes} bytes that this server stores of one. "
        "Delete items of it, or begin a new one with what still matters.",
        param=param,
        code="conversation_too_large",
    )


def appended(conversation: StoredConversation, items: Sequence[bytes]) -> StoredConversation:
    """The conversation with more at its end."""
    return replace(conversation, items=(*conversation.items, *items))


def _packed_response(response: StoredResponse) -> bytes:
    content: bytes = msgpack.packb(
        [
            _FORMAT,
            "response",
            response.body,
            response.inputs,
            list(response.path),
            response.conversation,
            response.num_items,
            response.num_dropped,
        ]
    )
    return content


def _response(response_id: str, content: bytes) -> StoredResponse | None:
    """None for anything that is not a response of this format."""
    match _unpacked(content):
        case [int(version), "response", bytes(body), bytes(inputs), list(path), str(belongs_to), int(items), int(out)]:
            if version == _FORMAT:
                return StoredResponse(response_id, body, inputs, tuple(path), belongs_to, items, out)
    return None


def _conversation(conversation_id: str, content: bytes) -> StoredConversation | None:
    """None for anything that is not a conversation of this format."""
    match _unpacked(content):
        case [int(version), "conversation", int(created_at), bytes(metadata), list(items)] if version == _FORMAT:
            return StoredConversation(conversation_id, created_at, metadata, tuple(items))
    return None


def _unpacked(content: bytes) -> object:
    try:
        return msgpack.unpackb(content)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
