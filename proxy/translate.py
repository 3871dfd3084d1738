"""The wire's request into the values of `sessions`: refusals by name, checks over two fields, parts joined.

Pure. What is known and not built is refused (`unsupported_parameter`), because a caller who sends it relies
on it.
"""

import re
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Final

from proxy.completion_schemas import CompletionBody
from proxy.format_schemas import format_grammar
from proxy.generation_schemas import ChoiceOptions, GenerationOptions
from proxy.message_schemas import (
    AssistantMessage,
    ChatMessage,
    Content,
    ContentPart,
    DeveloperMessage,
    FunctionMessage,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from proxy.refusals import invalid, unsupported
from proxy.schemas import ChatCompletionRequest
from proxy.tools import calls_of, template_options_of, tool_choice_of, tools_of
from sessions.errors import InvalidRequest
from sessions.types import Breakpoint, CacheOptions, ChatRequest, Message, Part, Role, SamplingParams, Tenant

_NEVER_BUILT = (
    "audio",
    "function_call",
    "functions",
    "moderation",
    "web_search_options",
)
"""Refused whatever their value, unless it is null or an empty list."""


_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")
"""One spelling per id: two would be two biases, whose sum no bound has seen."""


_PLAIN: Final[dict[type, Role]] = {UserMessage: "user", SystemMessage: "system", DeveloperMessage: "developer"}
"""Messages that are nothing but content."""

TTL_S = {None: None, "30m": 1800.0, "12h": 43_200.0, "24h": 86_400.0}


def chat_request(wire: ChatCompletionRequest, *, tenant: Tenant, max_n: int, vocab_size: int) -> ChatRequest:
    """Raises InvalidRequest naming the parameter."""
    refuse_unsupported(wire)
    check_together(wire, max_n)
    tools = tools_of(wire.tools)
    params = sampling_params(
        wire,
        vocab_size,
        max_tokens=_or(wire.max_completion_tokens, wire.max_tokens),
        num_logprobs=_or(wire.top_logprobs, 0) if wire.logprobs else None,
    )
    return ChatRequest(
        messages=tuple(_message(message, index) for index, message in enumerate(wire.messages)),
        params=replace(params, grammar=format_grammar(wire.response_format)),
        n=_or(wire.n, 1),
        tenant=tenant,
        cache_salt=wire.cache_salt,
        tools=tools,
        tool_choice=tool_choice_of(wire.tool_choice, tools, wire.parallel_tool_calls),
        template_options=template_options_of(wire.chat_template_kwargs, wire.reasoning_effort),
        prediction="" if wire.prediction is None else _text(wire.prediction.content, "prediction"),
        cache=cache_options(wire),
        wants_explanation=wire.anaphora is not None and wire.anaphora.explain,
        splice=wire.anaphora is None or wire.anaphora.splice,
    )


def refuse_unsupported(wire: ChatCompletionRequest) -> None:
    """Raises InvalidRequest for the first parameter that is set, known and not built."""
    for name in _NEVER_BUILT:
        if getattr(wire, name) not in (None, []):
            raise unsupported(name)
    if wire.modalities is not None and "audio" in wire.modalities:
        raise unsupported("modalities", "only 'text' is")


def check_together(wire: ChatCompletionRequest, max_n: int) -> None:
    """What one field alone cannot say. Raises InvalidRequest."""
    check_common(wire, max_n)
    if wire.top_logprobs is not None and not wire.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs", code="invalid_value")
    if wire.max_tokens and wire.max_completion_tokens and wire.max_tokens != wire.max_completion_tokens:
        raise invalid("max_tokens", "it contradicts 'max_completion_tokens'; send one of them")


def check_common(wire: ChoiceOptions, max_n: int) -> None:
    """The same of what all that generate have. Raises InvalidRequest."""
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options", "it is only allowed when 'stream' is true")
    if wire.n is not None and wire.n > max_n:
        raise invalid("n", f"this server allows at most {max_n}")
    check_seed(wire)


def check_seed(wire: GenerationOptions) -> None:
    """Signed or unsigned. Raises InvalidRequest."""
    if wire.seed is not None and not -(2**63) <= wire.seed < 2**64:
        raise invalid("seed", "it must fit into 64 bits")


def sampling_params(
    wire: ChoiceOptions, vocab_size: int, *, max_tokens: int | None, num_logprobs: int | None
) -> SamplingParams:
    """OpenAI's defaults where the request is silent.

    Raises InvalidRequest for a `logit_bias` id outside the vocabulary.
    """
    stop = (wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop or ())
    return SamplingParams(
        temperature=_or(wire.temperature, 1.0),
        top_p=_or(wire.top_p, 1.0),
        top_k=max(0, _or(wire.top_k, 0)),
        min_p=_or(wire.min_p, 0.0),
        seed=wire.seed,
        max_tokens=max_tokens,
        stop=stop,
        presence_penalty=_or(wire.presence_penalty, 0.0),
        frequency_penalty=_or(wire.frequency_penalty, 0.0),
        repetition_penalty=_or(wire.repetition_penalty, 1.0),
        num_logprobs=num_logprobs,
        logit_bias=_logit_bias(wire.logit_bias or {}, vocab_size),
        ignore_eos=bool(wire.ignore_eos),
    )


def _logit_bias(biases: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, bias in biases.items():
        token_id = int(key) if _TOKEN_ID.fullmatch(key) else -1
        if not 0 <= token_id < vocab_size:
            raise invalid("logit_bias", f"'{key[:32]}' is not one of the model's {vocab_size} token ids")
        pairs.append((token_id, bias))
    return tuple(sorted(pairs))


def _message(wire: ChatMessage, index: int) -> Message:
    """Texts and nothing else come first: they are nearly all of a long conversation, all of which comes every turn."""
    role = _PLAIN.get(type(wire))
    if isinstance(wire.content, str):
        if role is not None:
            return Message(role, wire.content)
        if isinstance(wire, AssistantMessage) and not wire.tool_calls and wire.function_call is None:
            return Message("assistant", wire.content, None, (), (), wire.reasoning_content or "")
    where = f"messages[{index}]"
    match wire:
        case FunctionMessage():
            return Message("tool", _text(wire.content or "", where), wire.name)
        case AssistantMessage():
            if wire.function_call is not None:
                raise unsupported(f"{where}.function_call")
            content = wire.refusal or "" if wire.content is None else _text(wire.content, where)
            return Message(
                "assistant",
                content,
                parts=_parts(wire.content or "", where),
                tool_calls=calls_of(wire.tool_calls, where),
                reasoning=wire.reasoning_content or "",
            )
        case ToolMessage():
            return Message("tool", _text(wire.content, where), wire.tool_call_id, _parts(wire.content, where))
        case UserMessage() | SystemMessage() | DeveloperMessage():
            return Message(_PLAIN[type(wire)], _text(wire.content, where), parts=_parts(wire.content, where))


def _text(content: Content, where: str) -> str:
    """Parts are joined as they stand: a string and its pieces mean the same."""
    if isinstance(content, str):
        return content
    return "".join(_part_text(part, f"{where}.content[{index}]") for index, part in enumerate(content))


def _parts(content: Content, where: str) -> tuple[Part, ...]:
    """Where each part stands in the joined text, if the client marked one of them."""
    if isinstance(content, str):
        return ()
    points = [part.prompt_cache_breakpoint if isinstance(part, TextPart) else None for part in content]
    if not any(points):
        return ()
    lengths = [len(_part_text(part, where)) for part in content]
    offsets = pairwise(accumulate(lengths, initial=0))
    return tuple(
        Part(start, end, None if point is None else Breakpoint(TTL_S[point.ttl]))
        for (start, end), point in zip(offsets, points, strict=True)
    )


def cache_options(wire: ChatCompletionRequest | CompletionBody) -> CacheOptions:
    """`prompt_cache_retention` is the older word for a time to live."""
    options, own = wire.prompt_cache_options, wire.anaphora
    ttl = options.ttl if options is not None else None
    return CacheOptions(
        is_explicit=options is not None and options.mode == "explicit",
        ttl_s=TTL_S[ttl or ("24h" if wire.prompt_cache_retention == "24h" else None)],
        priority="normal" if own is None else own.priority,
        group=wire.prompt_cache_key,
    )


def _part_text(part: ContentPart, where: str) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case _:
            raise unsupported(where, "only text parts are")


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
