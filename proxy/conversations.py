"""/v1/conversations: what is said in turns, under a name. Thin: read, change what is stored, shape the answer."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, PathParameter

from proxy.body import BodyRequest, check_count, decode_body
from proxy.documented import answers
from proxy.response_context import Context, ContextLoader
from proxy.response_item_schemas import ITEM_DECODER, FunctionCallItem, Item, ItemList
from proxy.response_items import ItemIds, check_call_ids, read_input
from proxy.response_pages import After, Limit, Order, page_of
from proxy.response_requests import (
    CONVERSATION_DECODER,
    CONVERSATION_UPDATE_DECODER,
    ITEMS_REQUEST_DECODER,
    ConversationRequest,
    ConversationUpdate,
    ItemsRequest,
)
from proxy.response_schemas import Conversation, ConversationDeleted
from proxy.schemas import ENCODER
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import NotStored
from sessions.response_store import ResponseStore, StoredConversation, appended, new_id
from sessions.service import ChatService
from sessions.types import Tenant


class ConversationBodyRequest(BodyRequest):
    """Of POST /v1/conversations."""

    def decode(self, body: bytes, settings: Settings) -> ConversationRequest:
        request = decode_body(body, CONVERSATION_DECODER, max_depth=settings.max_json_depth)
        check_count(len(request.items or ()), settings.max_messages, "items")
        return request


class ConversationUpdateRequest(BodyRequest):
    """Of POST /v1/conversations/{id}."""

    def decode(self, body: bytes, settings: Settings) -> ConversationUpdate:
        return decode_body(body, CONVERSATION_UPDATE_DECODER, max_depth=settings.max_json_depth)


class ItemsBodyRequest(BodyRequest):
    """Of POST /v1/conversations/{id}/items."""

    def decode(self, body: bytes, settings: Settings) -> ItemsRequest:
        request = decode_body(body, ITEMS_REQUEST_DECODER, max_depth=settings.max_json_depth)
        check_count(len(request.items), settings.max_messages, "items")
        return request


ConversationId = Annotated[str, PathParameter(description="`id` of a conversation.")]
ItemId = Annotated[str, PathParameter(description="`id` of one of its items.")]


class ConversationController(Controller):
    """A tenant sees and changes nothing of another's."""

    path = "/conversations"
    tags = ("Conversations",)
    request_class = BodyRequest

    @post(status_code=200, request_class=ConversationBodyRequest, opt=answers(404), summary="Begin a conversation")
    async def create(
        self,
        request: ConversationBodyRequest,
        data: JSONBody[ConversationRequest],
        service: NamedDependency[ChatService],
    ) -> Conversation:
        tenant = request_scope(request.scope).caller
        items = await _read(service.responses, tenant, data.items or [])
        check_call_ids((), items, "items")
        conversation = StoredConversation(
            new_id("conv_"),
            int(datetime.now(UTC).timestamp()),
            ENCODER.encode(data.metadata or {}),
            tuple(map(ENCODER.encode, items)),
        )
        await service.responses.create_conversation(tenant, conversation)
        return _shown(conversation)

    @get("/{conversation_id:str}", opt=answers(404), summary="A conversation, without its items")
    async def retrieve(
        self, request: BodyRequest, conversation_id: ConversationId, service: NamedDependency[ChatService]
    ) -> Conversation:
        return _shown(await service.responses.conversation(request_scope(request.scope).caller, conversation_id))

    @post(
        "/{conversation_id:str}",
        status_code=200,
        request_class=ConversationUpdateRequest,
        opt=answers(404),
        summary="Change a conversation's metadata",
    )
    async def update(
        self,
        request: ConversationUpdateRequest,
        conversation_id: ConversationId,
        data: JSONBody[ConversationUpdate],
        service: NamedDependency[ChatService],
    ) -> Conversation:
        metadata = ENCODER.encode(data.metadata or {})
        return _shown(
            await service.responses.change_conversation(
                request_scope(request.scope).caller,
                conversation_id,
                lambda conversation: replace(conversation, metadata=metadata),
            )
        )

    @delete("/{conversation_id:str}", status_code=200, opt=answers(404), summary="Forget a conversation and its items")
    async def forget(
        self, request: BodyRequest, conversation_id: ConversationId, service: NamedDependency[ChatService]
    ) -> ConversationDeleted:
        await service.responses.delete_conversation(request_scope(request.scope).caller, conversation_id)
        return ConversationDeleted(id=conversation_id)

    @post(
        "/{conversation_id:str}/items",
        status_code=200,
        request_class=ItemsBodyRequest,
        opt=answers(404),
        summary="Add items to a conversation",
    )
    async def add_items(
        self,
        request: ItemsBodyRequest,
        conversation_id: ConversationId,
        data: JSONBody[ItemsRequest],
        service: NamedDependency[ChatService],
    ) -> ItemList:
        tenant = request_scope(request.scope).caller
        items = await _read(service.responses, tenant, data.items)
        encoded = list(map(ENCODER.encode, items))

        def extended(conversation: StoredConversation) -> StoredConversation:
            before = map(ITEM_DECODER.decode, conversation.items)
            check_call_ids([item for item in before if isinstance(item, FunctionCallItem)], items, "items")
            return appended(conversation, encoded)

        await service.responses.change_conversation(tenant, conversation_id, extended)
        return page_of(items, after=None, limit=len(items), order="asc")

    @get("/{conversation_id:str}/items", opt=answers(400, 404), summary="The items of a conversation, a page at a time")
    async def items(
        self,
        request: BodyRequest,
        conversation_id: ConversationId,
        service: NamedDependency[ChatService],
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> ItemList:
        conversation = await service.responses.conversation(request_scope(request.scope).caller, conversation_id)
        items = [ITEM_DECODER.decode(item) for item in conversation.items]
        return page_of(items, after=after, limit=limit, order=order)

    @get("/{conversation_id:str}/items/{item_id:str}", opt=answers(404), summary="One item of a conversation")
    async def item(
        self,
        request: BodyRequest,
        conversation_id: ConversationId,
        item_id: ItemId,
        service: NamedDependency[ChatService],
    ) -> Response[Item]:
        conversation = await service.responses.conversation(request_scope(request.scope).caller, conversation_id)
        for item in map(ITEM_DECODER.decode, conversation.items):
            if item.id == item_id:
                return Response(item)
        raise NotStored("item", item_id)

    @delete(
        "/{conversation_id:str}/items/{item_id:str}",
        status_code=200,
        opt=answers(404),
        summary="Forget one item of a conversation",
    )
    async def forget_item(
        self,
        request: BodyRequest,
        conversation_id: ConversationId,
        item_id: ItemId,
        service: NamedDependency[ChatService],
    ) -> Conversation:
        def without(conversation: StoredConversation) -> StoredConversation:
            kept = tuple(item for item in conversation.items if ITEM_DECODER.decode(item).id != item_id)
            if len(kept) == len(conversation.items):
                raise NotStored("item", item_id)
            return replace(conversation, items=kept)

        tenant = request_scope(request.scope).caller
        return _shown(await service.responses.change_conversation(tenant, conversation_id, without))


async def _read(store: ResponseStore, tenant: Tenant, written: list[dict[str, Any]]) -> list[Item]:
    """Items with ids of their own. Raises InvalidRequest, and NotStored for what they refer to."""
    read = read_input(written, ItemIds(new_id("resp_")), "items")
    return await ContextLoader(store, tenant).resolved(read, Context(), "items")


def _shown(conversation: StoredConversation) -> Conversation:
    metadata: dict[str, str] = msgspec.json.decode(conversation.metadata)
    return Conversation(id=conversation.id, created_at=conversation.created_at, metadata=metadata)
