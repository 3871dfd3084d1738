"""What may be asked of everything that generates, as msgspec Structs: chat completions, completions and responses.

    GenerationOptions ◀─ ChoiceOptions ◀─ ChatCompletionRequest, CompletionBody
                      ◀─ ResponseContext ◀─ ResponseRequest

A field is declared and described once; `struct_schemas.py` follows the bases.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

StopSequence = Annotated[str, Meta(min_length=1, max_length=1000)]
LogitBias = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)]


class StreamOptions(Struct, frozen=True, kw_only=True):
    """Only with `stream`.

    include_usage: one more chunk at the end, with the usage and no choice. include_obfuscation: without effect.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptCacheOptions(Struct, frozen=True, kw_only=True):
    """What the cache may do with this request.

    mode: `implicit` reuses and stores what it can, `explicit` only up to breakpoints, so nothing without any.
    ttl: keep the prompt at least that long after its last use.
    """

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class GenerationOptions(Struct, frozen=True, kw_only=True):
    """Of one generation.

    temperature: 0 is greedy; 1 without it. top_p: draw from the likeliest tokens of this total probability.
    top_k: draw from that many likeliest tokens; 0 and -1 are all. min_p: draw from tokens at least this share as likely
    as the likeliest.
    seed: the same seed and request give the same answer, whoever else is served; any 64-bit integer.
    ignore_eos: go on where the model would end.
    stream: answer as server-sent events.
    cache_salt: shares no cached prefix with other salts; never widens sharing.
    prompt_cache_retention: the older word for a time to live: `24h` keeps the prompt a day.
    prompt_cache_key: requests that belong together. A group that comes back is kept as a session is, under pressure; a
    key shares nothing and separates nothing. user: taken, without effect.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_key: str | None = None
    user: str | None = None


class ChoiceOptions(GenerationOptions, frozen=True, kw_only=True):
    """Of one generation with choices.

    n: choices of a prompt, which is computed once for all. The server may allow fewer.
    stop: end a choice before the first of these; never in the answer.
    presence_penalty: taken from the logit of each token that was said. frequency_penalty: taken once per time that it
    was said. repetition_penalty: divides the logits of tokens that the prompt or the answer has.
    logit_bias: token id to what is added to its logit.
    stream_options: needs `stream`.
    prompt_cache_options: what the cache may do with this request.
    """

    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopSequence | Annotated[list[StopSequence], Meta(max_length=4)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: LogitBias | None = None
    stream_options: StreamOptions | None = None
    prompt_cache_options: PromptCacheOptions | None = None
