"""The wire of tokenizing and rendering as msgspec Structs. Several servers' words for the same thing are all taken."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.answer_schemas import AnaphoraReport
from sessions.texts import MAX_TOKENS

MAX_PIECES = 1 << 17
"""Tokens that are answered with their pieces."""

TokenIds = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_TOKENS)]


class TokenizeBody(Struct, frozen=True, kw_only=True):
    """Body of POST /tokenize: a text, or messages.

    content: a text, as llama.cpp's server calls it. prompt: a text, as vLLM does.
    add_special, add_special_tokens: put what the model begins every text with (BOS) before it; without a word, before a
    `prompt` and not before a `content`.
    parse_special: refused if true: special-token text stays text.
    messages, tools: a conversation instead, as in a chat completion.
    add_generation_prompt: end it where a reply begins; true without it.
    with_pieces: answer each token as an object with its piece; not for more than 131072 tokens.
    return_token_strs: say the pieces beside; with the same bound.
    model: the name in `/v1/models`; may be left out.
    """

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None
    model: str | None = None


class TokenPiece(Struct, frozen=True, kw_only=True):
    """A token. id: its number. piece: its text, or its bytes where they are no text."""

    id: int
    piece: str | list[int]


class Tokenized(Struct, frozen=True, kw_only=True):
    """Answer of POST /tokenize.

    tokens: ids, or with `with_pieces` objects. count: how many.
    max_model_len: how many a prompt and its reply may have.
    token_strs: on request, their pieces; bytes that are no text read as U+FFFD.
    """

    tokens: list[int | TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeBody(Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize. tokens: ids. model: the name in `/v1/models`; may be left out."""

    tokens: TokenIds
    model: str | None = None


class Detokenized(Struct, frozen=True, kw_only=True):
    """Answer of POST /detokenize. content, prompt: the text, special tokens left out, under both servers' names."""

    content: str
    prompt: str


class RenderedMessage(Struct, frozen=True, kw_only=True):
    """Where the content of a message stands in the prompt.

    index: of the message, as it was sent. start, end: characters of `prompt` before and after it.
    first_token, end_token: tokens wholly before its beginning, and before its end.
    """

    index: int
    start: int
    end: int
    first_token: int
    end_token: int


class Rendered(Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/chat/completions/render.

    object: always the same. prompt: the canonical text, control tokens as they are written.
    tokens: its ids, those of spliced replies as they were generated. count: how many.
    messages: where contents stand, in the prompt's order; none where the template changed more than their ends.
    anaphora: what was done with the request.
    """

    object: Literal["chat.completion.render"] = "chat.completion.render"
    prompt: str
    tokens: list[int]
    count: int
    messages: list[RenderedMessage]
    anaphora: AnaphoraReport


TOKENIZE_DECODER = msgspec.json.Decoder(TokenizeBody)
DETOKENIZE_DECODER = msgspec.json.Decoder(DetokenizeBody)
