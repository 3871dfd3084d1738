"""The wire of POST /v1/completions as msgspec Structs: a request, its answer, and the legacy shape of logprobs."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.answer_schemas import CompletionUsage
from proxy.generation_schemas import ChoiceOptions


class CompletionOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only this server has.

    priority: how long what is computed stays: `low` goes first, `high` stays as with a time to live.
    control_tokens: ids of control tokens in `prompt` are meant; without it they are refused.
    """

    priority: Literal["low", "normal", "high"] = "normal"
    control_tokens: bool = False


class CompletionBody(ChoiceOptions, frozen=True, kw_only=True):
    """Body of POST /v1/completions.

    prompt: a text, token ids, or a list of either. Texts are plain: what looks like a control token stays text, and
    what the model begins every text with (BOS) is put before them. Choice `i` of prompt `p` has the index `p * n + i`.
    model: the name in `/v1/models`; any other is a 404.
    max_tokens: most tokens of each choice; 16 without it; 0 with `echo` alone.
    echo: say the prompt before its completion. logprobs: say how likely each token was, and so many likeliest ones.
    best_of: the same as `n`, or refused. suffix: refused.
    anaphora: options that only this server has.
    """

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    model: Annotated[str, Meta(min_length=1)]

    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    anaphora: CompletionOptions | None = None
    best_of: int | None = None
    suffix: str | None = None


class LegacyLogprobs(Struct, frozen=True, kw_only=True):
    r"""How likely the tokens of a choice were, before penalties, bias and temperature; one entry for each token.

    tokens: their texts; `bytes:\xf0\x9f` where that is a piece of a character.
    token_logprobs: natural logarithms of their probabilities; null for the first token of a prompt that is echoed.
    top_logprobs: the likeliest tokens in their places, and the token itself.
    text_offset: characters of `text` before them.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct, frozen=True, kw_only=True):
    """One completion, or a piece of it.

    index: `p * n + i` for choice `i` of prompt `p`. text: what goes on from the prompt, and before it the prompt, with
    `echo`. finish_reason: `stop` or `length`; null in a stream but for a choice's last chunk.
    logprobs: if they were asked for.
    """

    index: int
    text: str
    finish_reason: str | None
    logprobs: LegacyLogprobs | None = None


class TextCompletion(Struct, frozen=True, kw_only=True):
    """Answer of POST /v1/completions, and the JSON of each of its events.

    id: of the completion. object: always `text_completion`. created: seconds since the epoch. model: the one that was
    asked. system_fingerprint: as for chat. choices: in a stream, one or none. usage: of all prompts and choices; in a
    stream, of the last chunk, with `stream_options.include_usage`.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: CompletionUsage | None = None


COMPLETION_DECODER = msgspec.json.Decoder(CompletionBody)
