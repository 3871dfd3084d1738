"""Submission: prompts in tokens into the engine's requests and the choices that read them. Pure.

With `n` choices, request k·n + i is choice i of prompt k.
"""

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sessions.detokenizer import StopStrings, TextStream
from sessions.dialect import Dialect
from sessions.engine.request import Request, RestoredBlocks
from sessions.engine.retention import CONTINUED, ONE_SHOT
from sessions.generation import Choice, Echo, PromptUse
from sessions.grammars import CompiledGrammar
from sessions.hashing import HashChain
from sessions.keeping import Keeping
from sessions.logprobs import LogprobStream
from sessions.reply_parser import ReplyParser
from sessions.tokenizer import Tokenizer
from sessions.transcripts import Said
from sessions.types import ChatRequest, CompletionRequest, RequestId, SamplingParams, TokenId

CONTEXT_TOKENS = 4
"""Of a prompt that a completion goes on with: what its decoder must have seen."""


@dataclass(frozen=True, slots=True)
class EnginePrompt:
    """A prompt as the engine gets it. token_ids, chain: its first choice goes on with them as they are, the others with
    copies. echo: it is said again before its completions; is_scored: with its scores, which choice 0 computes for all.
    """

    token_ids: "array[int]"
    chain: HashChain
    keeping: Keeping
    prediction: tuple[TokenId, ...] = ()
    restored: tuple[RestoredBlocks, ...] = ()
    grammar: CompiledGrammar | None = None
    echo: Echo | None = None
    is_scored: bool = False
    num_settled_drops: int = 0


def engine_requests(
    generation_id: str,
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[EnginePrompt],
    *,
    seeds: Sequence[int],
    eos_token_ids: frozenset[TokenId],
    max_model_len: int,
    is_returning: bool,
) -> list[Request]:
    """All choices of all prompts, in order, which own what the prompts hold from now on. seeds: of each prompt's choice
    0. is_returning: its group came before.
    """
    level = CONTINUED if is_returning and request.cache.priority != "low" else ONE_SHOT
    return [
        Request(
            id=RequestId(f"{generation_id}/{number * request.n + index}"),
            token_ids=array("I", prompt.token_ids) if index else prompt.token_ids,
            chain=prompt.chain.fork() if index else prompt.chain,
            params=request.params,
            max_tokens=_max_tokens(request.params, max_model_len - len(prompt.token_ids)),
            eos_token_ids=eos_token_ids,
            seed=choice_seed(seeds[number], index),
            prediction=prompt.prediction,
            restored=prompt.restored,
            owner=request.tenant.id,
            retention=prompt.keeping.retention,
            retentions=prompt.keeping.retentions,
            read_points=() if prompt.is_scored and index == 0 else prompt.keeping.read_points,
            write_limit=prompt.keeping.write_limit,
            num_settled_drops=prompt.num_settled_drops,
            constraint=None if prompt.grammar is None else prompt.grammar.constraint(),
            wants_prompt_scores=prompt.is_scored and index == 0,
            level=level,
        )
        for number, prompt in enumerate(prompts)
        for index in range(request.n)
    ]


def choices_of(
    request: ChatRequest | CompletionRequest,
    prompts: Sequence[EnginePrompt],
    said: Sequence[Said],
    tokenizer: Tokenizer,
) -> list[Choice]:
    """One for each of `engine_requests`. A completion goes on with its prompt's text; a chat's reply begins one."""
    stops = StopStrings(request.params.stop)
    goes_on = isinstance(request, CompletionRequest)
    choices: list[Choice] = []
    for prompt in prompts:
        use = PromptUse(len(prompt.token_ids), prompt.keeping.write_limit)
        use.scored_by = len(choices) if prompt.is_scored else None
        context = prompt.token_ids[-CONTEXT_TOKENS:] if goes_on else ()
        for _ in range(request.n):
            stream = TextStream(tokenizer.decode, stops, tokenizer.code_point_endings, context)
            asks = request.params.num_logprobs is not None
            logprobs = LogprobStream(tokenizer.token_bytes, opens=not goes_on) if asks else None
            choices.append(Choice(len(choices), use, stream, said[len(choices)], logprobs, prompt.echo))
    return choices


def parser_of(request: ChatRequest, dialect: Dialect, *, is_thinking: bool) -> ReplyParser | None:
    """For one choice. None where nothing but text can come. is_thinking: the prompt ends inside thoughts."""
    asked = request.tool_choice
    tools = () if asked.mode == "none" else request.tools
    names = [tool.name for tool in tools if asked.names is None or tool.name in asked.names]
    if not names and not dialect.thinks:
        return None
    return ReplyParser(
        dialect,
        names=names,
        is_thinking=is_thinking,
        only_calls=asked.mode == "required",
        max_calls=None if asked.is_parallel else 1,
        new_id=_call_id,
    )


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def choice_seed(seed: int, index: int) -> int:
    """A choice's own 64-bit signed seed; choice 0 has the caller's."""
    mixed = (seed + index * 0x9E3779B97F4A7C15) & (2**64 - 1)
    return mixed - 2**64 if mixed >= 2**63 else mixed


def _max_tokens(params: SamplingParams, room: int) -> int:
    return room if params.max_tokens is None else min(params.max_tokens, room)
