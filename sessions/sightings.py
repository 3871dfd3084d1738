"""Sightings: under which model and template a conversation was answered before, so that a miss can be told from news.

Another model, arithmetic, tokenizer or template is another root, and from there nothing of what was kept can be found
or even told to exist. So for every conversation that is answered a mark is left where replies are kept, under a key
that binds tenant, salt and how the conversation begins, but no model:

    key     of the tools and of the messages before the first reply, below a root of the tenant's and the salt's
    value   digest of what computes ‖ digest of tokenizer and template ‖ this process, 8 bytes each

A mark says no more than that; it lives as long as a reply's record, and is lost where Redis is. Event loop only.
"""

import secrets
from dataclasses import replace
from hashlib import blake2b
from itertools import takewhile
from typing import Final, Literal

from sessions.conversation import Conversation, TurnKey, turn_keys
from sessions.hashing import DIGEST_BYTES, RootFields, encode_fields, tenant_key
from sessions.replies import Shelf
from sessions.types import BlockHash, ChatRequest, Tenant

Sighting = Literal["here", "elsewhere", "other_model", "other_template"]
"""here: by this process. elsewhere: by another one that computes the same, on another machine or before a restart."""

_PERSON: Final = b"anaphora/seen/01"
_PART_BYTES: Final = 8


class Sightings:
    """One per service."""

    def __init__(self, shelf: Shelf, secret: bytes, root_fields: RootFields) -> None:
        self._shelf = shelf
        self._secret = secret
        self._model = _digest(encode_fields(replace(root_fields, tokenizer="", template="")))
        self._template = _digest(f"{root_fields.tokenizer}\n{root_fields.template}".encode())
        self._process = secrets.token_bytes(_PART_BYTES)

    def note(self, request: ChatRequest, conversation: Conversation) -> None:
        """The conversation is answered here. Does not wait."""
        root = self._root(request.tenant, request.cache_salt)
        salted_of = None if request.cache_salt is None else self._root(request.tenant, None)
        self._shelf.keep_reply(root, _key(root, conversation), self._model + self._template + self._process, salted_of)

    async def look(self, request: ChatRequest, conversation: Conversation) -> Sighting | None:
        """How the conversation was answered last; None if nothing tells. One round trip."""
        root = self._root(request.tenant, request.cache_salt)
        marks = await self._shelf.fetch_replies(root, [_key(root, conversation)])
        mark = marks[0] if marks else None
        if mark is None or len(mark) != 3 * _PART_BYTES:
            return None
        if not mark.startswith(self._model):
            return "other_model"
        if not mark.startswith(self._template, _PART_BYTES):
            return "other_template"
        return "here" if mark.endswith(self._process) else "elsewhere"

    def forget(self, tenant: Tenant) -> None:
        """Every mark of the tenant's, whatever the salt. Does not wait."""
        self._shelf.forget_replies(self._root(tenant, None), and_salts=True)

    def _root(self, tenant: Tenant, salt: str | None) -> BlockHash:
        key = tenant_key(self._secret, tenant.id, salt)
        return BlockHash(blake2b(key=key, person=_PERSON, digest_size=DIGEST_BYTES).digest())


def _key(root: BlockHash, conversation: Conversation) -> TurnKey:
    opening = tuple(takewhile(lambda turn: turn.role != "assistant", conversation.turns))
    *_, key = turn_keys(root, replace(conversation, turns=opening))
    return key


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_PART_BYTES, person=_PERSON).digest()
