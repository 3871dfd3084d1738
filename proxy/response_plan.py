"""Plan: a request for a response, with all that it refers to, as one chat request. Nothing is computed yet.

    read the input ▸ what came before ▸ what it refers to ▸ messages ▸ truncation ▸ what to compare with

Whatever can be refused is refused here, naming the parameter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from msgspec import UNSET, UnsetType

from proxy.cache_schemas import CacheMiss
from proxy.refusals import invalid
from proxy.response_context import Context, ContextLoader
from proxy.response_item_schemas import Item
from proxy.response_items import ItemIds, check_call_ids, messages_of, read_input
from proxy.response_requests import ResponseContext, ResponseRequest
from proxy.response_schemas import BODY_DECODER, ComparisonNotFound, Diagnostics, DiagnosticsUnavailable, ResponseBody
from proxy.response_translate import (
    OtherReason,
    begun,
    chat_request,
    check_context,
    context_request,
    diagnostics_of,
    refuse_unsupported,
    with_instructions,
)
from proxy.schemas import ENCODER
from proxy.settings import Settings
from sessions.errors import InvalidRequest, ModelNotFound, NotStored, StoreUnavailable
from sessions.reports import PromptReport
from sessions.response_store import conversation_too_large, new_id
from sessions.service import ChatService
from sessions.truncation import at_most
from sessions.types import ChatRequest, Message, Tenant


@dataclass(frozen=True, slots=True)
class Compared:
    """The response that a request wants to be compared with."""

    body: ResponseBody
    num_dropped: int


@dataclass(frozen=True, slots=True)
class Plan:
    """asked: what the service is to do. body: the answer so far. ids: for the items of the reply. inputs: the request's
    own items. num_dropped: messages that truncation left out. wants_storing: as the client asked.
    """

    asked: ChatRequest
    body: ResponseBody
    ids: ItemIds
    inputs: list[Item]
    context: Context
    num_dropped: int
    wants_storing: bool
    is_prewarm: bool
    compared: Compared | ComparisonNotFound | DiagnosticsUnavailable | None

    def diagnostics(self, report: PromptReport, num_prompt_tokens: int) -> Diagnostics | UnsetType:
        """What `comparison_response_id` asked for."""
        if self.compared is None:
            return UNSET
        if not isinstance(self.compared, Compared):
            return self.compared
        compared = self.compared
        if compared.body.model != self.body.model:
            return CacheMiss(
                cache_missed_tokens=num_prompt_tokens, reason="model_changed", comparison_reusable_tokens=0
            )
        other: OtherReason | None = None
        if compared.body.reasoning.effort != self.body.reasoning.effort:
            other = "reasoning_effort_changed"
        elif compared.num_dropped != self.num_dropped:
            other = "context_compacted"
        return diagnostics_of(report.comparison, num_prompt_tokens, other)


class Planner:
    """For one tenant's requests."""

    def __init__(self, service: ChatService, settings: Settings, tenant: Tenant) -> None:
        self._service = service
        self._settings = settings
        self._tenant = tenant
        self._loader = ContextLoader(service.responses, tenant)

    async def plan(self, wire: ResponseRequest) -> Plan:
        """Raises InvalidRequest, ContextLengthExceeded, ModelNotFound, NotStored, StoreUnavailable."""
        if wire.model != self._service.model_id:
            raise ModelNotFound(wire.model)
        refuse_unsupported(wire)
        response_id = new_id("resp_")
        ids = ItemIds(response_id)
        context, inputs, messages, num_dropped = await self._read(wire, ids)
        asked = chat_request(wire, messages, self._tenant)
        wants_storing = wire.store is not False and self._service.responses.is_on
        if wants_storing or context.conversation:
            self._check_size(inputs, context)
        if wire.truncation == "auto":
            asked, num_more = await self._service.truncated(asked, self._room(wire))
            num_dropped += num_more
        options = wire.prompt_cache_options
        asked, compared = await self._compared(asked, options.comparison_response_id if options else None)
        return Plan(
            asked=asked,
            body=begun(wire, response_id, int(datetime.now(UTC).timestamp())),
            ids=ids,
            inputs=inputs,
            context=context,
            num_dropped=num_dropped,
            wants_storing=wants_storing,
            is_prewarm=bool(options and options.prewarm),
            compared=compared,
        )

    async def count(self, wire: ResponseContext) -> int:
        """Tokens of the prompt. Raises as `plan` does."""
        if wire.model not in (None, self._service.model_id):
            raise ModelNotFound(str(wire.model))
        check_context(wire)
        _, _, messages, _ = await self._read(wire, ItemIds(new_id("resp_")))
        return await self._service.count(context_request(wire, messages, self._tenant))

    async def _read(self, wire: ResponseContext, ids: ItemIds) -> tuple[Context, list[Item], tuple[Message, ...], int]:
        """What came before, the request's own items, both as messages, and how many of those are too many for a prompt.

        Those are left out if the client allows it.
        """
        written = read_input(wire.input, ids, "input")
        context = await self._loader.context(wire)
        inputs = await self._loader.resolved(written, context)
        check_call_ids(context.items, inputs, "input")
        messages: Sequence[Message] = with_instructions(wire.instructions, messages_of([*context.items, *inputs]))
        if not messages:
            raise invalid("input", "there is nothing to answer")
        most, num_dropped = self._settings.max_messages, 0
        if wire.truncation == "auto":
            messages, num_dropped = at_most(messages, most)
        if len(messages) > most:
            raise InvalidRequest(
                f"With what came before there are {len(messages)} messages, and a prompt has {most} at most here. Send "
                "'truncation': 'auto' to leave out the oldest, or begin anew with what still matters.",
                param="input",
                code="context_length_exceeded",
            )
        return context, inputs, tuple(messages), num_dropped

    def _check_size(self, inputs: list[Item], context: Context) -> None:
        """Before anything is computed, with an eighth for the reply where that is added too."""
        num_bytes, most = len(ENCODER.encode(inputs)), self._service.responses.max_bytes
        if num_bytes > most:
            raise InvalidRequest(
                f"The input is larger than the {most} bytes that this server stores of a response; "
                "send 'store': false.",
                param="input",
                code="input_too_large_to_store",
            )
        if context.conversation and context.num_bytes + num_bytes > most - most // 8:
            raise conversation_too_large(most, "conversation")

    def _room(self, wire: ResponseRequest) -> int:
        """Tokens that truncation leaves for the reply."""
        most = self._service.max_model_len
        return min(wire.max_output_tokens or most // 8, most // 2)

    async def _compared(
        self, asked: ChatRequest, response_id: str | None
    ) -> tuple[ChatRequest, Compared | ComparisonNotFound | DiagnosticsUnavailable | None]:
        """The request with what it is to be compared with; a comparison that cannot be made costs no answer."""
        if response_id is None:
            return asked, None
        try:
            stored = await self._service.responses.response(self._tenant, response_id)
            earlier = await self._loader.request_of(stored, asked.cache_salt)
        except NotStored:
            return asked, ComparisonNotFound()
        except StoreUnavailable:
            return asked, DiagnosticsUnavailable()
        return replace(asked, compared=earlier), Compared(BODY_DECODER.decode(stored.body), stored.num_dropped)
