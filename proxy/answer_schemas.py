"""What chat completions and models answer, whole and in the events of a stream."""

from typing import Annotated, Literal, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.cache_schemas import CacheExplanation
from proxy.logprob_schemas import ChoiceLogprobs
from proxy.tool_schemas import CallPiece, ToolCallMade
from sessions.reports import PromptReport, Usage


class AnswerHead(NamedTuple):
    """What a whole answer and all of its chunks begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    """Of a prompt's tokens.

    cached_tokens: found in the cache, in any tier. cache_write_tokens: computed now and stored. audio_tokens: none.
    """

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the tokens of all choices.

    reasoning_tokens: thought, not said. audio_tokens: none. accepted_prediction_tokens, rejected_prediction_tokens: of
    `prediction`, as far as it was tried.
    """

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a request.

    prompt_tokens: of the prompt, counted once. completion_tokens: of all choices. total_tokens: both.
    prompt_tokens_details: where they came from. completion_tokens_details: what they were.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=usage.cached_tokens, cache_write_tokens=usage.cache_write_tokens
            ),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=usage.reasoning_tokens,
                accepted_prediction_tokens=usage.accepted_prediction_tokens,
                rejected_prediction_tokens=usage.rejected_prediction_tokens,
            ),
        )


class Moved(Struct, frozen=True, kw_only=True, rename={"source": "from", "target": "to"}):
    """Something that the canonical order put elsewhere.

    from: where the request had it, e.g. `messages[3]`. to: where the prompt has it.
    """

    source: str
    target: str


class AnaphoraReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was done with the request.

    spliced_messages: replies in the prompt taken as the tokens that were generated. moved: what the canonical order
    put elsewhere. cache: on request, what the cache had of the prompt and why no more.
    """

    spliced_messages: Annotated[int, Meta(ge=0)]
    moved: list[Moved] = []
    cache: CacheExplanation | None = None

    @classmethod
    def of(cls, report: PromptReport) -> "AnaphoraReport":
        return cls(
            spliced_messages=report.num_spliced,
            moved=[Moved(source=move.source, target=move.target) for move in report.moves],
            cache=None if report.explanation is None else CacheExplanation.of(report.explanation),
        )


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The reply.

    role: always the assistant. content: its text; null where it made calls and said nothing else. refusal: always
    null. tool_calls: the calls it makes. reasoning_content: what a reasoning model thought before it.
    """

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCallMade] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class Choice(Struct, frozen=True, kw_only=True):
    """One of `n` replies.

    index: which. message: the reply. finish_reason: `stop` where it ended by itself or at a stop sequence, `length` at
    a limit. logprobs: if they were asked for.
    """

    index: int
    message: AnswerMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """A whole answer.

    id: of this answer. object: always the same. created: seconds since the epoch. model: that answered.
    system_fingerprint: equal for equal weights, arithmetic, tokenizer and template. choices: by index. usage: tokens.
    service_tier: `default`, if the request named one. anaphora: what was done with the request.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: CompletionUsage
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class ChunkDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to a choice; texts are concatenated.

    role: in the choice's first chunk. content: the next piece of the text. reasoning_content: of the thoughts before
    it. tool_calls: pieces of calls.
    """

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CallPiece] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """What a chunk says of one choice.

    index: which. delta: what it adds. finish_reason: in the choice's last chunk, else null. logprobs: of the tokens of
    this chunk, if they were asked for.
    """

    index: int
    delta: ChunkDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a streamed answer.

    id, created, model, system_fingerprint: the same in all chunks. object: always the same. choices: what this chunk
    adds; none in the chunk with the usage. usage: null but in the last chunk, if it was asked for. service_tier:
    `default`, if the request named one. anaphora: what was done with the request; in the first chunk.
    """

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    service_tier: str | UnsetType = UNSET
    anaphora: AnaphoraReport | UnsetType = UNSET


class Model(Struct, frozen=True, kw_only=True):
    """A model.

    id: its name in requests. created: when it was loaded, in seconds since the epoch. object: always the same.
    owned_by: this server.
    """

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "anaphora"


class ModelList(Struct, frozen=True, kw_only=True):
    """data: the one model served here. object: always the same."""

    data: list[Model]
    object: Literal["list"] = "list"
