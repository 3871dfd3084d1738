"""/tokenize, /detokenize and the preview of a chat's prompt. Thin; nothing is run. Key and limits are chat's."""

from collections.abc import Sequence

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import UNSET

from proxy.answer_schemas import AnaphoraReport
from proxy.asked import asked_of
from proxy.body import BodyRequest, check_count, converted, decode_body
from proxy.documented import answers
from proxy.refusals import invalid, unsupported
from proxy.schemas import ChatCompletionRequest
from proxy.scope import request_scope
from proxy.settings import Settings
from proxy.tokenizer_schemas import (
    DETOKENIZE_DECODER,
    MAX_PIECES,
    TOKENIZE_DECODER,
    DetokenizeBody,
    Detokenized,
    Rendered,
    RenderedMessage,
    TokenizeBody,
    Tokenized,
    TokenPiece,
)
from sessions.errors import ModelNotFound
from sessions.service import ChatService
from sessions.texts import LONG_TEXT
from sessions.types import Tenant


class TokenizeRequest(BodyRequest):
    """Of POST /tokenize."""

    def decode(self, body: bytes, settings: Settings) -> TokenizeBody:
        decoded = decode_body(body, TOKENIZE_DECODER, max_depth=settings.max_json_depth)
        check_count(len(decoded.messages or ()), settings.max_messages, "messages")
        return decoded


class DetokenizeRequest(BodyRequest):
    """Of POST /detokenize."""

    def decode(self, body: bytes, settings: Settings) -> DetokenizeBody:
        return decode_body(body, DETOKENIZE_DECODER, max_depth=settings.max_json_depth)


class TokenizerController(Controller):
    """Served at the root, where other servers have it, and under `/v1`."""

    path = "/"
    tags = ("Tokenizer",)

    @post(
        "/tokenize",
        status_code=200,
        request_class=TokenizeRequest,
        opt=answers(404),
        summary="Token ids of a text, or of a conversation",
    )
    async def tokenize(
        self,
        request: TokenizeRequest,
        data: JSONBody[TokenizeBody],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> Tokenized:
        _check_model(data.model, service)
        _check_asked(data)
        if data.messages is None:
            ids: list[int] = await _text_ids(data, service, request_scope(request.scope).caller)
        else:
            ids = await _message_ids(request, data, service, settings)
        return await tokenized(data, ids, service)

    @post(
        "/detokenize",
        status_code=200,
        request_class=DetokenizeRequest,
        opt=answers(404),
        summary="The text of token ids",
    )
    async def detokenize(self, data: JSONBody[DetokenizeBody], service: NamedDependency[ChatService]) -> Detokenized:
        _check_model(data.model, service)
        text = await service.texts.decode(data.tokens)
        return Detokenized(content=text, prompt=text)


class RenderController(Controller):
    path = "/chat/completions/render"
    tags = ("Chat",)
    request_class = BodyRequest

    @post(status_code=200, opt=answers(404), summary="The prompt that a chat completion would have; nothing is run")
    async def render(
        self,
        request: BodyRequest,
        data: JSONBody[ChatCompletionRequest],
        service: NamedDependency[ChatService],
        settings: NamedDependency[Settings],
    ) -> Rendered:
        """Canonical order, spliced replies and ids are those that `/v1/chat/completions` would use now."""
        rendering = await service.texts.render(asked_of(service, data, request_scope(request.scope), settings))
        return Rendered(
            prompt=rendering.text,
            tokens=list(rendering.token_ids),
            count=len(rendering.token_ids),
            messages=[
                RenderedMessage(
                    index=place.message,
                    start=place.start,
                    end=place.end,
                    first_token=place.first_token,
                    end_token=place.end_token,
                )
                for place in rendering.places
            ],
            anaphora=AnaphoraReport.of(rendering.report),
        )


def _check_model(model: str | None, service: ChatService) -> None:
    if model is not None and model != service.model_id:
        raise ModelNotFound(model)


def _check_asked(data: TokenizeBody) -> None:
    """All of several servers' words are taken, but no two that say different things."""
    given = [name for name in ("content", "prompt", "messages") if getattr(data, name) is not None]
    if not given:
        raise invalid("prompt", "one of 'content', 'prompt' and 'messages' is needed")
    if len(given) > 1:
        raise invalid(given[1], f"'{given[0]}' is there too, and one of them is tokenized")
    if data.parse_special:
        raise unsupported("parse_special", "special-token text stays text")
    if data.messages is None and data.tools:
        raise invalid("tools", "they belong to 'messages'")
    asked = {name: getattr(data, name) for name in ("add_special", "add_special_tokens")}
    if set(asked.values()) == {True, False}:
        raise invalid("add_special_tokens", "'add_special' says otherwise")
    if data.messages is not None and True in asked.values():
        wanted = next(name for name, is_asked in asked.items() if is_asked)
        raise unsupported(wanted, "what a conversation begins with, its template says")


async def _text_ids(data: TokenizeBody, service: ChatService, tenant: Tenant) -> list[int]:
    param, text = ("prompt", data.prompt or "") if data.content is None else ("content", data.content)
    asked = data.add_special if data.add_special_tokens is None else data.add_special_tokens
    with_prefix = data.content is None if asked is None else asked
    return list(await service.texts.encode(text, tenant, with_prefix=with_prefix, param=param))


async def _message_ids(
    request: TokenizeRequest, data: TokenizeBody, service: ChatService, settings: Settings
) -> list[int]:
    body = {"model": service.model_id, "messages": data.messages, "tools": data.tools}
    asked = asked_of(service, converted(body, ChatCompletionRequest, ""), request_scope(request.scope), settings)
    rendering = await service.texts.render(asked, is_open=data.add_generation_prompt is not False)
    return list(rendering.token_ids)


async def tokenized(data: TokenizeBody, ids: Sequence[int], service: ChatService) -> Tokenized:
    """With the pieces that were asked for: many of them are made off the event loop. Raises InvalidRequest past the
    bound."""
    if not (data.with_pieces or data.return_token_strs):
        return Tokenized(tokens=[*ids], count=len(ids), max_model_len=service.max_model_len)
    if len(ids) > MAX_PIECES:
        asked = "with_pieces" if data.with_pieces else "return_token_strs"
        raise invalid(asked, f"pieces are said of {MAX_PIECES} tokens at most, and these are {len(ids)}")

    def with_pieces() -> Tokenized:
        pieces = list(map(service.texts.piece, ids))
        return Tokenized(
            tokens=list(map(_piece, ids, pieces)) if data.with_pieces else [*ids],
            count=len(ids),
            max_model_len=service.max_model_len,
            token_strs=list(map(_readable, pieces)) if data.return_token_strs else UNSET,
        )

    return await service.texts.apart(with_pieces) if 4 * len(ids) > LONG_TEXT else with_pieces()


def _piece(token_id: int, piece: bytes | str) -> TokenPiece:
    """As llama.cpp's server has it: text where the bytes are one."""
    if isinstance(piece, str):
        return TokenPiece(id=token_id, piece=piece)
    try:
        return TokenPiece(id=token_id, piece=piece.decode())
    except UnicodeDecodeError:
        return TokenPiece(id=token_id, piece=list(piece))


def _readable(piece: bytes | str) -> str:
    return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
