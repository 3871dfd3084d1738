"""The wire of /v1/responses into the values of `sessions`, and what of it an answer repeats. Pure.

What is known and not built is refused by name, as for chat completions.
"""

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from proxy.answer_schemas import AnaphoraReport
from proxy.cache_schemas import CacheHit, CacheMiss
from proxy.format_schemas import schema_grammar
from proxy.refusals import invalid, unsupported
from proxy.response_requests import (
    ConversationReference,
    JsonObjectFormat,
    JsonSchemaFormat,
    Reasoning,
    ResponseContext,
    ResponseRequest,
    TextFormat,
    TextOptions,
)
from proxy.response_schemas import AppliedCacheOptions, Diagnostics, DiagnosticsUnavailable, ResponseBody
from proxy.response_tools import sessions_tools, tool_choice_of, tools_of
from proxy.tools import TemplateValue, template_options_of
from proxy.translate import TTL_S, check_seed
from sessions.reports import Comparison, PromptReport
from sessions.types import CacheOptions, ChatRequest, Grammar, Message, SamplingParams, Tenant

OtherReason = Literal["reasoning_effort_changed", "context_compacted"]

_NEVER_BUILT: Final = (
    "access_programs",
    "background",
    "background_options",
    "context_management",
    "image",
    "max_tool_calls",
    "moderation",
    "prompt",
)
"""Refused whatever their value, unless it is null, false or empty."""


def refuse_unsupported(wire: ResponseRequest) -> None:
    """Raises InvalidRequest for the first parameter that is set, known and not built, or contradicts another."""
    for name in _NEVER_BUILT:
        value = getattr(wire, name)
        if value is not None and value is not False and value not in ([], {}):
            raise unsupported(name)
    if wire.stream_options is not None and not wire.stream:
        raise invalid("stream_options", "it is only allowed when 'stream' is true")
    check_seed(wire)
    check_context(wire)


def check_context(wire: ResponseContext) -> None:
    """Raises InvalidRequest for two kinds of context at once, or for nothing to answer."""
    if wire.previous_response_id is not None and wire.conversation is not None:
        raise invalid("previous_response_id", "it cannot be used together with 'conversation'")
    if wire.input is None and wire.previous_response_id is None and wire.conversation is None:
        raise invalid("input", "it is needed where there is neither 'previous_response_id' nor 'conversation'")


def template_options(reasoning: Reasoning | None) -> tuple[tuple[str, TemplateValue], ...]:
    """What a reasoning model's template may read."""
    return template_options_of(None, reasoning.effort if reasoning is not None else None)


def with_instructions(instructions: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Instructions stand first, and are nobody's but this request's: no later one has them."""
    return (Message("system", instructions), *messages) if instructions else tuple(messages)


def chat_request(wire: ResponseRequest, messages: tuple[Message, ...], tenant: Tenant) -> ChatRequest:
    """Raises InvalidRequest naming the parameter."""
    tools, own = tools_of(wire.tools), wire.anaphora
    return ChatRequest(
        messages=messages,
        params=_sampling_params(wire),
        tenant=tenant,
        cache_salt=wire.cache_salt,
        tools=sessions_tools(tools),
        tool_choice=tool_choice_of(wire, tools),
        template_options=template_options(wire.reasoning),
        cache=_cache_options(wire),
        wants_explanation=own is not None and own.explain,
        splice=own is None or own.splice,
    )


def context_request(wire: ResponseContext, messages: tuple[Message, ...], tenant: Tenant) -> ChatRequest:
    """For its tokens alone. Raises InvalidRequest naming the parameter."""
    tools = tools_of(wire.tools)
    return ChatRequest(
        messages=messages,
        tenant=tenant,
        cache_salt=wire.cache_salt,
        tools=sessions_tools(tools),
        template_options=template_options(wire.reasoning),
    )


def _sampling_params(wire: ResponseRequest) -> SamplingParams:
    return SamplingParams(
        temperature=1.0 if wire.temperature is None else wire.temperature,
        top_p=1.0 if wire.top_p is None else wire.top_p,
        top_k=max(0, wire.top_k or 0),
        min_p=wire.min_p or 0.0,
        seed=wire.seed,
        max_tokens=wire.max_output_tokens,
        ignore_eos=bool(wire.ignore_eos),
        num_logprobs=_num_logprobs(wire),
        grammar=_grammar(wire.text),
    )


def _grammar(text: TextOptions | None) -> Grammar | None:
    """None for any text."""
    match text and text.format:
        case JsonSchemaFormat(schema_=schema):
            return schema_grammar(schema, "text.format.schema")
        case JsonObjectFormat():
            return schema_grammar(None, "text.format")
        case _:
            return None


def _num_logprobs(wire: ResponseRequest) -> int | None:
    """`top_logprobs` alone asks for them too: to answer with none would be a silence."""
    wants_them = "message.output_text.logprobs" in (wire.include or ()) or bool(wire.top_logprobs)
    return (wire.top_logprobs or 0) if wants_them else None


def _cache_options(wire: ResponseRequest) -> CacheOptions:
    options = wire.prompt_cache_options
    ttl = options.ttl if options is not None else None
    return CacheOptions(
        is_explicit=options is not None and options.mode == "explicit",
        ttl_s=TTL_S[ttl or ("24h" if wire.prompt_cache_retention == "24h" else None)],
        priority="normal" if wire.anaphora is None else wire.anaphora.priority,
        group=wire.prompt_cache_key,
    )


# -- answers --


def begun(wire: ResponseRequest, response_id: str, created_at: int) -> ResponseBody:
    """The answer before there is any: what was asked for, with the defaults that apply."""
    text, options = wire.text or TextOptions(), wire.prompt_cache_options
    conversation = wire.conversation_id
    return ResponseBody(
        id=response_id,
        created_at=created_at,
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        model=wire.model,
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        previous_response_id=wire.previous_response_id,
        conversation=None if conversation is None else ConversationReference(id=conversation),
        prompt_cache_key=wire.prompt_cache_key,
        prompt_cache_options=UNSET
        if options is None
        else AppliedCacheOptions(
            mode=options.mode or "implicit",
            ttl=options.ttl or "30m",
            comparison_response_id=options.comparison_response_id,
        ),
        prompt_cache_retention=wire.prompt_cache_retention,
        reasoning=wire.reasoning or Reasoning(),
        safety_identifier=wire.safety_identifier,
        service_tier=None if wire.service_tier is None else "default",
        temperature=1.0 if wire.temperature is None else wire.temperature,
        text=TextOptions(format=text.format or TextFormat(), verbosity=text.verbosity or "medium"),
        tool_choice="auto" if wire.tool_choice is None else wire.tool_choice,
        tools=tools_of(wire.tools),
        top_logprobs=wire.top_logprobs or 0,
        top_p=1.0 if wire.top_p is None else wire.top_p,
        truncation=wire.truncation or "disabled",
        user=wire.user,
        metadata=wire.metadata or {},
    )


def with_report(body: ResponseBody, report: PromptReport, diagnostics: Diagnostics | UnsetType) -> ResponseBody:
    return replace(body, anaphora=AnaphoraReport.of(report), prompt_cache_diagnostics=diagnostics)


def diagnostics_of(comparison: Comparison | None, num_prompt_tokens: int, other: OtherReason | None) -> Diagnostics:
    """What the comparison says, in OpenAI's words. other: what differs beside the input and the tools."""
    if comparison is None:
        return DiagnosticsUnavailable()
    if not comparison.parts:
        return CacheHit() if comparison.are_held else DiagnosticsUnavailable()
    shared = comparison.shared_tokens
    return CacheMiss(
        cache_missed_tokens=num_prompt_tokens - shared,
        reason="tools_changed" if not comparison.have_same_tools else other or "input_changed",
        comparison_reusable_tokens=shared,
    )
