"""What comes before a request's own input: earlier responses, a conversation, items that are referred to.

Everything is asked of the store under the caller's tenant, so that another's id is as unknown as one that never was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.refusals import invalid
from proxy.response_item_schemas import ITEM_DECODER, ITEMS_DECODER, Item
from proxy.response_items import ItemReference, messages_of, response_of
from proxy.response_requests import ResponseContext
from proxy.response_schemas import BODY_DECODER, ResponseBody
from proxy.response_tools import sessions_tools
from proxy.response_translate import template_options, with_instructions
from sessions.errors import NotStored
from sessions.response_store import ResponseStore, StoredResponse
from sessions.truncation import leading
from sessions.types import ChatRequest, Tenant


@dataclass(frozen=True, slots=True)
class Context:
    """items: all that was said before. path: the responses that said it.

    conversation, num_items, num_bytes: or the conversation where it stands, and how much of that.
    """

    items: list[Item] = field(default_factory=list)
    path: tuple[str, ...] = ()
    conversation: str = ""
    num_items: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ContextLoader:
    """Of one request. Every method raises NotStored and StoreUnavailable."""

    store: ResponseStore
    tenant: Tenant

    async def context(self, wire: ResponseContext) -> Context:
        """Raises InvalidRequest too."""
        if wire.previous_response_id is not None:
            return await self._after(wire.previous_response_id, "previous_response_id")
        if wire.conversation_id is not None:
            conversation = await self.store.conversation(self.tenant, wire.conversation_id, "conversation")
            items = [ITEM_DECODER.decode(item) for item in conversation.items]
            return Context(items, (), conversation.id, len(items), sum(map(len, conversation.items)))
        return Context()

    async def resolved(
        self, inputs: Sequence[Item | ItemReference], context: Context, param: str = "input"
    ) -> list[Item]:
        """The inputs with what they refer to in its place. param: where they stand."""
        known = {item.id: item for item in context.items}
        wanted = [item.id for item in inputs if isinstance(item, ItemReference) and item.id not in known]
        for item_id in wanted:
            if response_of(item_id) is None:
                raise NotStored("item", item_id, param)
        owners = list(dict.fromkeys(filter(None, map(response_of, wanted))))
        for response in await self.store.responses(self.tenant, owners, param):
            known |= {item.id: item for item in turn_of(response)}
        for item_id in wanted:
            if item_id not in known:
                raise NotStored("item", item_id, param)
        return [known[item.id] if isinstance(item, ItemReference) else item for item in inputs]

    async def request_of(self, stored: StoredResponse, cache_salt: str | None) -> ChatRequest:
        """What a stored response was asked, so far as its prompt goes."""
        body = BODY_DECODER.decode(stored.body)
        before = await self._before(stored, None)
        messages = with_instructions(body.instructions, messages_of([*before, *ITEMS_DECODER.decode(stored.inputs)]))
        num_kept = leading(messages)
        kept = (*messages[:num_kept], *messages[num_kept + stored.num_dropped :])
        return ChatRequest(
            messages=kept,
            tenant=self.tenant,
            cache_salt=cache_salt,
            tools=sessions_tools(body.tools),
            template_options=template_options(body.reasoning),
        )

    async def _after(self, response_id: str, param: str) -> Context:
        stored = await self.store.response(self.tenant, response_id, param)
        if stored.conversation:
            raise invalid(param, f"it belongs to the conversation '{stored.conversation}'; go on with that")
        items = [*await self._before(stored, param), *turn_of(stored)]
        return Context(items, (*stored.path, stored.id))

    async def _before(self, stored: StoredResponse, param: str | None) -> list[Item]:
        if stored.conversation:
            conversation = await self.store.conversation(self.tenant, stored.conversation, param)
            return [ITEM_DECODER.decode(item) for item in conversation.items[: stored.num_items]]
        earlier = await self.store.responses(self.tenant, stored.path, param)
        return [item for response in earlier for item in turn_of(response)]


def turn_of(stored: StoredResponse) -> list[Item]:
    """What a response was given and what it said."""
    body: ResponseBody = BODY_DECODER.decode(stored.body)
    return [*ITEMS_DECODER.decode(stored.inputs), *body.output]
