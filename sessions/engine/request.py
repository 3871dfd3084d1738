"""Request: one generation in the engine. Data and derivations; the scheduler changes it, nobody else.

    token_ids      [ prompt ................ | output ........ ]
    computed       [0 ........ num_computed_tokens)                 KV is in `block_table`
    block_table    [ block ][ block ][ block ][ bl..]               block i holds tokens [i*size, (i+1)*size)

There is no prefill or decode mode: a step computes tokens [num_computed_tokens, num_tokens), or as many as it may, and
draws the next token once it has caught up.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sessions.engine.block_table import BlockTable
from sessions.engine.constraint import Constraint
from sessions.engine.retention import IMPLICIT, ONE_SHOT, SHARED, Retention
from sessions.errors import SessionError
from sessions.hashing import HashChain
from sessions.types import BlockHash, FinishReason, RequestId, SamplingParams


class RestoredBlocks(NamedTuple):
    """KV of consecutive blocks of a prompt, from a lower tier and verified.

    first: index of the first of them in the prompt. payload: uint8 [num_blocks, block_bytes].
    """

    first: int
    payload: npt.NDArray[np.uint8]

    @property
    def end(self) -> int:
        return self.first + len(self.payload)


class TokenScore(NamedTuple):
    """A token's log-probability in the unmodified distribution. top: (token id, its own), the likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class RequestStatus(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """One prompt, one completion.

    chain: hashes of `token_ids`' whole blocks; its roots carry model and tenant.
    max_tokens: output tokens at most, already clipped to the context. 0: the prompt is computed and nothing said.
    seed: 64-bit; with the position it determines every draw, so a preempted request draws the same tokens again.
    """

    id: RequestId
    token_ids: "array[int]"
    chain: HashChain
    params: SamplingParams
    max_tokens: int
    eos_token_ids: frozenset[int]
    seed: int
    prediction: tuple[int, ...] = ()
    """What the client expects the output to be: a source of drafts."""
    restored: tuple[RestoredBlocks, ...] = ()
    """What a lower tier had of the prompt, in order and without gaps; let go of at the first admission."""
    owner: str | None = None
    """Whose budget what this request leaves behind counts in (`BlockPool.set_budget`)."""
    retention: Retention = IMPLICIT
    """How long the pool shall keep all of it."""
    retentions: tuple[tuple[int, Retention], ...] = ()
    """The same for leading tokens only: (num_tokens, how long)."""
    read_points: tuple[int, ...] | None = None
    """Where reuse may end, in tokens, rising; None is anywhere. Empty: nothing is read."""
    write_limit: int | None = None
    """Leading tokens whose KV may be found by others; None is all."""
    constraint: Constraint | None = None
    """What the output must match; the request's own."""
    num_settled_drops: int = 0
    """As the request arrived: nothing that was dropped since is stored (`Drops`)."""
    wants_prompt_scores: bool = False
    """Score the prompt too, with as many alternatives as the output; such a request must read nothing."""
    level: int = ONE_SHOT
    """How much is lost with what it adds: what is known of it, or what the pool makes of it (`BlockPool.reuse`)."""
    num_prompt_tokens: int = field(init=False)
    status: RequestStatus = RequestStatus.WAITING
    block_table: BlockTable = field(default_factory=BlockTable)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    """Prompt tokens found in the pool or restored at first admission; None before that."""
    num_restored_tokens: int = 0
    """Those of `num_cached_tokens` that came from `restored`."""
    admitted_at: float | None = None
    """time.monotonic() of the first admission."""
    is_predicted: bool = False
    """Did the drafts under way come from `prediction`?"""
    are_drafts_forced: bool = False
    """Did they come from `constraint`?"""
    num_accepted_prediction_tokens: int = 0
    num_rejected_prediction_tokens: int = 0
    draft_pause: int = 0
    """Steps to come without drafts."""
    draft_misses: int = 0
    """Length of the next pause; grows while drafts are all wrong."""
    num_registered_blocks: int = 0
    """Leading blocks of `block_table` known to the pool's tree."""
    output_counts: dict[int, int] = field(default_factory=dict)
    """Output token id -> occurrences; kept only when a penalty needs it."""
    seen_ids: dict[int, None] = field(default_factory=dict)
    """Every token id of prompt and output, once; kept only when a repetition penalty needs it."""
    prompt_scores: list[TokenScore] = field(default_factory=list)
    """Of prompt tokens 1, 2, ..., as far as they are computed; what a preemption loses is not scored again."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        if self.params.repetition_penalty != 1:
            self.seen_ids = dict.fromkeys(self.token_ids)

    @property
    def root(self) -> BlockHash:
        """What its own blocks hang from: those after the shared ones, and every tail."""
        return self.chain.branch

    def owner_of(self, index: int) -> str | None:
        """Whose the block at `index` is; a shared one is nobody's."""
        return None if index < self.chain.num_shared_blocks else self.owner

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def has_penalty(self) -> bool:
        return bool(self.params.presence_penalty or self.params.frequency_penalty)

    def rows_to_score(self, start: int, end: int) -> range:
        """Of the rows that compute tokens [start, end): those whose logits score a prompt token, each the one after."""
        if not self.wants_prompt_scores:
            return range(0)
        return range(max(start, len(self.prompt_scores)), min(end, self.num_prompt_tokens - 1))

    @property
    def num_shown_tokens(self) -> int:
        """Leading tokens that are computed, and may be found by others."""
        return min(self.num_computed_tokens, self.num_computed_tokens if self.write_limit is None else self.write_limit)

    def readable(self, num_tokens: int) -> int:
        """How many of `num_tokens` that the pool has may be reused."""
        if self.read_points is None:
            return num_tokens
        index = bisect_right(self.read_points, num_tokens)
        return self.read_points[index - 1] if index else 0

    @property
    def ends_with_eos(self) -> bool:
        return self.token_ids[-1] in self.eos_token_ids

    @property
    def error(self) -> SessionError | None:
        """Why it must end without a reply, if it must."""
        return None if self.constraint is None else self.constraint.error

    def append(self, token_id: int) -> None:
        """The next token was drawn."""
        self.token_ids.append(token_id)
        self.chain.extend((token_id,))
        if self.has_penalty:
            self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
        if self.params.repetition_penalty != 1:
            self.seen_ids[token_id] = None
        if self.constraint is not None:
            self.constraint.accept(token_id)

    def levels(self) -> Iterator[tuple[int, int]]:
        """(number of leading tokens, level that their blocks shall have at least) of what is computed."""
        yield self.num_computed_tokens, max(self.level, self.retention.level)
        if self.chain.num_shared_blocks:
            yield min(self.chain.num_shared_blocks * self.chain.block_size, self.num_computed_tokens), SHARED
        for num_tokens, retention in self.retentions:
            yield min(num_tokens, self.num_computed_tokens), retention.level

    def finish_reason(self) -> FinishReason | None:
        """Why generation ends after the last appended token, if it does."""
        if self.ends_with_eos and (self.constraint is not None or not self.params.ignore_eos):
            return "stop"
        if self.constraint is not None and self.constraint.is_complete:
            return "stop"
        if self.num_output_tokens >= self.max_tokens:
            return "length"
        return None


class Stored(NamedTuple):
    """`hashes` are registered, from the first block after `root` on. owner: as in `Request`; None of a shared chain."""

    root: BlockHash
    hashes: tuple[BlockHash, ...]
    owner: str | None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step did for one request; the only thing that leaves the engine.

    num_cached_tokens, num_restored_tokens: as in `Request`. error: why the request ended without a reply.
    prediction: how many tokens of the request's prediction were right, and wrong, so far.
    admitted_at: time.monotonic() when the engine first ran it.
    stored: chains from their first blocks on, when this step made prompt or turn complete (BlockStored).
    scores: one for each of `token_ids`, if they were asked for. prompt_scores: of the prompt but for its first token,
    with the output that completes it.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_cached_tokens: int
    stored: tuple[Stored, ...] = ()
    admitted_at: float | None = None
    error: SessionError | None = None
    prediction: tuple[int, int] = (0, 0)
    num_restored_tokens: int = 0
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    ends_with_eos: bool = False
    """The last of `token_ids` only ends the reply."""
