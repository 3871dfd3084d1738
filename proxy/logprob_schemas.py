"""The wire of logprobs as msgspec Structs: what chat completions say of each token."""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from sessions.reports import TokenLogprob


class TopLogprob(Struct, frozen=True, kw_only=True):
    r"""A token that might have been drawn.

    token: its text; `\xf0\x9f` where that is a piece of a character; its name where it writes nothing.
    logprob: its natural logarithm of probability, before penalties, bias and temperature.
    bytes: what it writes; null where it writes nothing.
    """

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob, frozen=True, kw_only=True):
    """A token that was drawn.

    top_logprobs: the likeliest tokens in its place, the likeliest first.
    """

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct, frozen=True, kw_only=True):
    """How likely the tokens of a choice were.

    content: of the text. refusal: always null.
    """

    content: list[TokenLogprobs]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Iterable[TokenLogprob]) -> "ChoiceLogprobs":
        return cls(content=[TokenLogprobs(**_fields(token), top_logprobs=_top(token)) for token in tokens])


def _top(token: TokenLogprob) -> list[TopLogprob]:
    return [TopLogprob(**_fields(alternative)) for alternative in token.top]


def _fields(token: TokenLogprob) -> dict[str, Any]:
    written = None if token.bytes is None else list(token.bytes)
    return {"token": token.text, "logprob": token.logprob, "bytes": written}
