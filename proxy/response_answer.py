"""Answer: a reply as a response, whole or as server-sent events, stored before its client has the end.

    created ─ in_progress ─ (events of items) ─ stored ─ completed │ incomplete
                                              an error ─ failed

Once a stream has begun no exception may leave it: what goes wrong is its last event. Keep-alives as for chat.
"""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Literal

from msgspec.structs import replace

from proxy.errors import ErrorAnswer, internal_error_answer, log_unexpected, session_error_answer
from proxy.metrics import Metrics
from proxy.reply import Reply
from proxy.response_event_schemas import Completed, Created, Failed, Incomplete, InProgress
from proxy.response_events import EventWriter, OutputBuilder
from proxy.response_item_schemas import Item, OutputItem
from proxy.response_plan import Plan
from proxy.response_schemas import IncompleteDetails, ResponseBody, ResponseError, ResponseUsage
from proxy.response_translate import with_report
from proxy.schemas import ENCODER
from proxy.sse import KEEP_ALIVE
from sessions.errors import SessionError
from sessions.reports import PromptReport, Usage
from sessions.response_store import ResponseStore, StoredResponse, appended


class Answer:
    """To one plan."""

    def __init__(self, plan: Plan, store: ResponseStore, metrics: Metrics) -> None:
        self._plan = plan
        self._store = store
        self._metrics = metrics
        self._output = OutputBuilder(plan.ids)
        self._body = replace(plan.body, store=plan.wants_storing)

    async def collected(self, reply: Reply) -> ResponseBody:
        """The whole answer, stored. Raises SessionError."""
        async for batch in reply.batches():
            for delta in batch:
                self._output.feed(delta)
        return await self._ended(reply)

    async def prewarmed(self, usage: Usage) -> ResponseBody:
        """The answer to who wants none, stored. Raises SessionError."""
        return await self._kept(self._complete(usage, PromptReport(), []))

    def prewarmed_frames(self, body: ResponseBody) -> Iterator[bytes]:
        """`prewarmed`'s answer as a stream."""
        writer = EventWriter()
        yield self._begun(writer)
        yield writer.frame(Completed(response=body))

    async def frames(self, reply: Reply, request_id: str) -> AsyncIterator[bytes]:
        """The body of a streamed answer. Never raises; closes the reply however it ends."""
        writer = EventWriter()
        try:
            yield self._begun(writer)
            async for batch in reply.batches():
                events = [event for delta in batch for event in self._output.feed(delta)]
                if events or not batch:
                    yield b"".join(map(writer.frame, events)) or KEEP_ALIVE
            body = await self._ended(reply)
            yield writer.frame(Incomplete(response=body) if body.incomplete_details else Completed(response=body))
        except SessionError as error:
            yield self._failed(writer, reply, session_error_answer(error))
        except Exception as error:  # noqa: BLE001 - logged; see the module docstring
            log_unexpected(request_id, error)
            yield self._failed(writer, reply, internal_error_answer())
        finally:
            reply.close()

    def _begun(self, writer: EventWriter) -> bytes:
        return writer.frame(Created(response=self._body)) + writer.frame(InProgress(response=self._body))

    async def _ended(self, reply: Reply) -> ResponseBody:
        generation = reply.generation
        return await self._kept(self._complete(generation.usage(), generation.report, self._output.output))

    def _complete(self, usage: Usage, report: PromptReport, output: list[OutputItem]) -> ResponseBody:
        is_cut_off = self._output.is_cut_off
        status: Literal["incomplete", "completed"] = "incomplete" if is_cut_off else "completed"
        body = replace(
            self._body,
            status=status,
            completed_at=None if is_cut_off else int(datetime.now(UTC).timestamp()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut_off else None,
            output=output,
            usage=ResponseUsage.of(usage),
        )
        return with_report(body, report, self._plan.diagnostics(report, usage.prompt_tokens))

    async def _kept(self, body: ResponseBody) -> ResponseBody:
        """The answer as it is stored; a response that cannot be stored says so, and is an answer all the same.

        A conversation that cannot be added to is an error: its next turn would lack this one.
        """
        plan, tenant = self._plan, self._plan.asked.tenant
        if plan.context.conversation:
            items: list[Item] = [*plan.inputs, *body.output]
            encoded = [ENCODER.encode(item) for item in items]
            await self._store.change_conversation(
                tenant, plan.context.conversation, lambda conversation: appended(conversation, encoded), "conversation"
            )
        if not plan.wants_storing:
            return body
        stored = StoredResponse(
            body.id,
            ENCODER.encode(body),
            ENCODER.encode(plan.inputs),
            plan.context.path,
            plan.context.conversation,
            plan.context.num_items,
            plan.num_dropped,
        )
        if await self._store.keep(tenant, stored):
            return body
        self._metrics.response_store_failures.inc()
        return replace(body, store=False)

    def _failed(self, writer: EventWriter, reply: Reply, answer: ErrorAnswer) -> bytes:
        events = b"".join(map(writer.frame, self._output.abandon()))
        code: Literal["server_error", "rate_limit_exceeded"]
        code = "rate_limit_exceeded" if answer.status == 429 else "server_error"
        body = replace(
            self._body,
            status="failed",
            store=False,
            error=ResponseError(code=code, message=answer.message),
            output=self._output.output,
            usage=ResponseUsage.of(reply.generation.usage()),
        )
        return events + writer.frame(Failed(response=body))
