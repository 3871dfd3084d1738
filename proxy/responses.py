"""/v1/responses. Thin: plan, start, then collect the answer or hand its frames to the server.

As for chat, everything that can be a 4xx or 5xx happens before a `Stream` is returned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import JSONBody, PathParameter, QueryParameter
from litestar.response import Stream

from proxy import sse
from proxy.body import BodyRequest, check_count, decode_body
from proxy.documented import EXAMPLE, answers
from proxy.replying import Replier, unless_client_leaves
from proxy.response_answer import Answer
from proxy.response_event_schemas import StreamEvent
from proxy.response_item_schemas import ITEMS_DECODER, ItemList
from proxy.response_pages import After, Limit, Order, page_of
from proxy.response_plan import Plan, Planner
from proxy.response_requests import CONTEXT_DECODER, RESPONSE_DECODER, ResponseContext, ResponseRequest
from proxy.response_schemas import BODY_DECODER, InputTokens, ResponseBody, ResponseDeleted
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import ContextLengthExceeded, InvalidRequest
from sessions.service import ChatService


class ResponseBodyRequest(BodyRequest):
    """Of POST /v1/responses."""

    def decode(self, body: bytes, settings: Settings) -> ResponseRequest:
        request = decode_body(body, RESPONSE_DECODER, max_depth=settings.max_json_depth)
        check_input(request, settings)
        return request


class ContextBodyRequest(BodyRequest):
    """Of POST /v1/responses/input_tokens."""

    def decode(self, body: bytes, settings: Settings) -> ResponseContext:
        request = decode_body(body, CONTEXT_DECODER, max_depth=settings.max_json_depth)
        check_input(request, settings)
        return request


def check_input(request: ResponseContext, settings: Settings) -> None:
    if isinstance(request.input, list):
        check_count(len(request.input), settings.max_messages, "input")


ResponseId = Annotated[str, PathParameter(description="`id` of a response.")]


class ResponseController(Controller):
    """Guards and limits stand in `app.py`, where the router is made."""

    path = "/responses"
    tags = ("Responses",)
    request_class = BodyRequest

    @post(
        status_code=200,
        request_class=ResponseBodyRequest,
        summary="Create a response, whole or as server-sent events",
        opt=answers(404, 504, events=StreamEvent, example={"model": EXAMPLE["model"], "input": "Hello!"}),
    )
    async def create(
        self,
        request: ResponseBodyRequest,
        data: JSONBody[ResponseRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
        replier: NamedDependency[Replier],
    ) -> Response[ResponseBody] | Stream:
        """With `stream` the answer is `text/event-stream`: an event is `event: <type>`, `data: {...}` and a blank line.
        The last is `response.completed`, `response.incomplete` or `response.failed`; a silence is filled with comments
        (`: keep-alive`). What goes wrong before the first token has a real status.
        """
        held = request_scope(request.scope)
        with _prompt_is_input():
            plan = await Planner(service, settings, held.caller).plan(data)
            answer = Answer(plan, service.responses, replier.metrics)
            if plan.is_prewarm:
                return await _prewarmed(request, service, plan, answer, is_stream=bool(data.stream))
            reply = await replier.open(request, plan.asked)
        if data.stream:
            frames = answer.frames(reply, held.request_id)
            return Stream(frames, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        return Response(await unless_client_leaves(request, answer.collected(reply)))

    @post(
        "/input_tokens",
        status_code=200,
        request_class=ContextBodyRequest,
        opt=answers(404),
        summary="How many tokens the prompt of a response would have",
    )
    async def input_tokens(
        self,
        request: ContextBodyRequest,
        data: JSONBody[ResponseContext],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> InputTokens:
        planner = Planner(service, settings, request_scope(request.scope).caller)
        with _prompt_is_input():
            return InputTokens(input_tokens=await planner.count(data))

    @post("/compact", include_in_schema=False)
    async def compact(self, request: BodyRequest) -> None:  # noqa: ARG002 - its class
        """Not built: `truncation` is how a long conversation goes on here."""
        raise NotFoundException

    @get("/{response_id:str}", opt=answers(400, 404), summary="A stored response, as it was sent")
    async def retrieve(
        self,
        request: BodyRequest,
        response_id: ResponseId,
        service: NamedDependency[ChatService],
        stream: Annotated[bool, QueryParameter(description="Refused if true.")] = False,
    ) -> Response[ResponseBody]:
        if stream:
            raise InvalidRequest(
                "Only a response made with 'background' could be streamed again, and this server makes none.",
                param="stream",
                code="unsupported_parameter",
            )
        stored = await service.responses.response(request_scope(request.scope).caller, response_id)
        return Response(BODY_DECODER.decode(stored.body))

    @delete("/{response_id:str}", status_code=200, opt=answers(404), summary="Forget a stored response")
    async def forget(
        self, request: BodyRequest, response_id: ResponseId, service: NamedDependency[ChatService]
    ) -> ResponseDeleted:
        await service.responses.delete_response(request_scope(request.scope).caller, response_id)
        return ResponseDeleted(id=response_id)

    @get(
        "/{response_id:str}/input_items",
        opt=answers(400, 404),
        summary="What a stored response was given, a page at a time",
    )
    async def input_items(
        self,
        request: BodyRequest,
        response_id: ResponseId,
        service: NamedDependency[ChatService],
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> ItemList:
        stored = await service.responses.response(request_scope(request.scope).caller, response_id)
        return page_of(ITEMS_DECODER.decode(stored.inputs), after=after, limit=limit, order=order)

    @post(
        "/{response_id:str}/cancel",
        status_code=200,
        opt=answers(400, 404),
        summary="Refused: nothing runs in the background here",
    )
    async def cancel(
        self, request: BodyRequest, response_id: ResponseId, service: NamedDependency[ChatService]
    ) -> Response[ResponseBody]:
        await service.responses.response(request_scope(request.scope).caller, response_id)
        raise InvalidRequest("Only a response made with 'background' can be cancelled.", code="not_cancellable")


@contextmanager
def _prompt_is_input() -> Iterator[None]:
    """A prompt that is too long is blamed on `input`, which is what this API calls its messages."""
    try:
        yield
    except ContextLengthExceeded as error:
        error.param = "input"
        raise


async def _prewarmed(
    request: ResponseBodyRequest, service: ChatService, plan: Plan, answer: Answer, *, is_stream: bool
) -> Response[ResponseBody] | Stream:
    usage = await unless_client_leaves(request, service.warm(plan.asked))
    request_scope(request.scope).fields.update(
        prompt_tokens=usage.prompt_tokens, cached_tokens=usage.cached_tokens, finish_reason="prewarmed"
    )
    body = await answer.prewarmed(usage)
    if is_stream:
        return Stream(answer.prewarmed_frames(body), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
    return Response(body)
