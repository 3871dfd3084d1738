"""POST /v1/chat/completions. Thin: translate, start, then collect the reply or hand its frames to the server.

Everything that can be a 4xx or 5xx happens before a `Stream` is returned; past that only an error frame is
possible.
"""

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import JSONBody
from litestar.response import Stream
from msgspec import UNSET, UnsetType

from proxy import sse
from proxy.answer_schemas import (
    AnaphoraReport,
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    CompletionUsage,
)
from proxy.asked import asked_of
from proxy.body import BodyRequest
from proxy.documented import EXAMPLE, answers
from proxy.logprob_schemas import ChoiceLogprobs
from proxy.reply import Reply
from proxy.replying import Replier, head_of, unless_client_leaves
from proxy.schemas import ChatCompletionRequest
from proxy.scope import request_scope
from proxy.settings import Settings
from proxy.tools import whole_calls
from sessions.reports import Delta
from sessions.service import ChatService


class ChatController(Controller):
    """Guards and limits stand in `app.py`, where the router is made."""

    path = "/chat/completions"
    tags = ("Chat",)
    request_class = BodyRequest

    @post(
        status_code=200,
        summary="Create a chat completion, whole or as server-sent events",
        opt=answers(404, 504, events=ChatCompletionChunk, example=EXAMPLE),
    )
    async def create(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
        replier: NamedDependency[Replier],
    ) -> Response[ChatCompletion] | Stream:
        """With `stream` the answer is `text/event-stream`: each event is one line `data: {...}` and a blank line, the
        last one `data: [DONE]`. A silence is filled with comments (`: keep-alive`). What goes wrong before the first
        token has a real status; after it, an event `data: {"error": {...}}` comes before the last.
        """
        held = request_scope(request.scope)
        asked = asked_of(service, data, held, settings)
        reply = await replier.open(request, asked)
        generation = reply.generation
        head, tier = head_of(generation, service), _service_tier(data)
        report = AnaphoraReport.of(generation.report)
        if data.stream:
            options = data.stream_options
            frames = sse.frames(
                reply,
                sse.ChunkWriter(head, tier, report, may_call=bool(asked.tools)),
                n=asked.n,
                include_usage=bool(options and options.include_usage),
                request_id=held.request_id,
            )
            return Stream(frames, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        choices = await unless_client_leaves(request, _collect(reply, asked.n, has_logprobs=bool(data.logprobs)))
        completion = ChatCompletion(
            **head._asdict(),
            choices=choices,
            usage=CompletionUsage.of(generation.usage()),
            service_tier=tier,
            anaphora=report,
        )
        return Response(completion)

    @get(include_in_schema=False)
    async def stored(self, request: BodyRequest) -> None:  # noqa: ARG002 - its class
        """Completions are not stored: their list is as unknown as each of them."""
        raise NotFoundException


async def _collect(reply: Reply, n: int, *, has_logprobs: bool) -> list[Choice]:
    """The whole answer. Raises SessionError."""
    deltas: list[list[Delta]] = [[] for _ in range(n)]
    async for batch in reply.batches():
        for delta in batch:
            deltas[delta.choice].append(delta)
    return [
        Choice(
            index=index,
            message=_message(of_choice),
            finish_reason=reply.finish_reasons[index],
            logprobs=ChoiceLogprobs.of([part for delta in of_choice for part in delta.logprobs])
            if has_logprobs
            else None,
        )
        for index, of_choice in enumerate(deltas)
    ]


def _message(deltas: list[Delta]) -> AnswerMessage:
    text = "".join(delta.text for delta in deltas)
    calls = whole_calls(piece for delta in deltas for piece in delta.tool_calls)
    return AnswerMessage(
        content=None if calls and not text else text,
        tool_calls=calls or UNSET,
        reasoning_content="".join(delta.reasoning for delta in deltas) or UNSET,
    )


def _service_tier(data: ChatCompletionRequest) -> str | UnsetType:
    return UNSET if data.service_tier is None else "default"
