"""POST /v1/completions: texts to go on with. Thin, as `chat.py` is: translate, start, collect or hand frames over."""

from collections import defaultdict
from collections.abc import Sequence

from litestar import Controller, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from litestar.response import Stream

from proxy import sse
from proxy.answer_schemas import AnswerHead, CompletionUsage
from proxy.body import BodyRequest, decode_body
from proxy.completion_schemas import COMPLETION_DECODER, CompletionBody, LegacyLogprobs, TextChoice, TextCompletion
from proxy.completion_translate import LegacyWriter, completion_request
from proxy.documented import EXAMPLE, answers
from proxy.reply import Reply
from proxy.replying import Replier, head_of, unless_client_leaves
from proxy.schemas import ENCODER
from proxy.scope import request_scope
from proxy.settings import Settings
from sessions.errors import ModelNotFound
from sessions.reports import Delta, TokenLogprob
from sessions.service import ChatService


class CompletionBodyRequest(BodyRequest):
    """Of POST /v1/completions."""

    def decode(self, body: bytes, settings: Settings) -> CompletionBody:
        return decode_body(body, COMPLETION_DECODER, max_depth=settings.max_json_depth)


class CompletionController(Controller):
    """Guards and limits as for chat."""

    path = "/completions"
    tags = ("Completions",)
    request_class = CompletionBodyRequest

    @post(
        status_code=200,
        summary="Go on with texts, whole or as server-sent events",
        opt=answers(404, 504, events=TextCompletion, example={"model": EXAMPLE["model"], "prompt": "Once"}),
    )
    async def create(
        self,
        request: CompletionBodyRequest,
        data: JSONBody[CompletionBody],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
        replier: NamedDependency[Replier],
    ) -> Response[TextCompletion] | Stream:
        """Streams are framed as those of chat completions."""
        if data.model != service.model_id:
            raise ModelNotFound(data.model)
        held = request_scope(request.scope)
        asked = completion_request(data, tenant=held.caller, max_n=settings.max_n, vocab_size=service.vocab_size)
        reply = await replier.open(request, asked)
        writer = CompletionWriter(head_of(reply.generation, service), has_logprobs=data.logprobs is not None)
        n = len(asked.prompts) * asked.n
        if data.stream:
            options = data.stream_options
            frames = sse.frames(
                reply,
                writer,
                n=n,
                include_usage=bool(options and options.include_usage),
                request_id=held.request_id,
            )
            return Stream(frames, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)
        choices = await unless_client_leaves(request, _collect(reply, writer, n))
        return Response(writer.completion(choices, CompletionUsage.of(reply.generation.usage())))


class CompletionWriter:
    """Completions, whole or in chunks, that share a head. Pure but for the offsets of its choices."""

    def __init__(self, head: AnswerHead, *, has_logprobs: bool) -> None:
        self._head = head._asdict()
        self._has_logprobs = has_logprobs
        self._logprobs: defaultdict[int, LegacyWriter] = defaultdict(LegacyWriter)

    def opening(self, n: int) -> bytes:  # noqa: ARG002 - `sse.EventWriter`
        """Choices need no words before their first text."""
        return b""

    def deltas(self, batch: Sequence[Delta]) -> bytes:
        return b"".join(
            self._event([self.choice(delta.choice, delta.text, delta.finish_reason, delta.logprobs)])
            for delta in batch
            if delta.text or delta.logprobs or delta.finish_reason
        )

    def usage(self, usage: CompletionUsage) -> bytes:
        return self._event([], usage)

    def choice(self, index: int, text: str, finish_reason: str | None, tokens: Sequence[TokenLogprob]) -> TextChoice:
        logprobs: LegacyLogprobs | None = self._logprobs[index].write(tokens) if self._has_logprobs else None
        return TextChoice(index=index, text=text, finish_reason=finish_reason, logprobs=logprobs)

    def completion(self, choices: list[TextChoice], usage: CompletionUsage | None = None) -> TextCompletion:
        return TextCompletion(**self._head, choices=choices, usage=usage)

    def _event(self, choices: list[TextChoice], usage: CompletionUsage | None = None) -> bytes:
        return b"data: " + ENCODER.encode(self.completion(choices, usage)) + b"\n\n"


async def _collect(reply: Reply, writer: CompletionWriter, n: int) -> list[TextChoice]:
    """The whole answer. Raises SessionError."""
    pieces: list[list[str]] = [[] for _ in range(n)]
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
    async for batch in reply.batches():
        for delta in batch:
            pieces[delta.choice].append(delta.text)
            logprobs[delta.choice] += delta.logprobs
    return [
        writer.choice(index, "".join(pieces[index]), reply.finish_reasons[index], logprobs[index]) for index in range(n)
    ]
